"""Engines in a child process made by fork: their threads, and those of PyTorch, did not come along."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

import torch


class PerProcess(Protocol):
    """An object that holds threads, locks or buffers of one process."""

    def reset_process_state(self) -> None: ...


_OBJECTS: weakref.WeakSet[PerProcess] = weakref.WeakSet()


def reset_in_child(one: PerProcess) -> None:
    """Have `one.reset_process_state()` called in every process that is forked from this one."""
    _OBJECTS.add(one)


def _in_child() -> None:
    torch.set_num_threads(1)  # PyTorch's own threads are gone too
    for one in list(_OBJECTS):
        one.reset_process_state()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
