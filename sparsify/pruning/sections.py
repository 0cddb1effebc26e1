"""The former place of `pruning.settings.sections`; programs of users import `decimal` from here."""

from __future__ import annotations

from .settings.sections import decimal

__all__ = ["decimal"]
