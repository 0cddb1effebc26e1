"""Forwards that leave out their shortcuts by values when they are told that they are traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def announced_as_traced() -> Iterator[None]:
    """Have `torch.compiler.is_compiling()` say yes in the block, as `torch.export` does.

    Libraries ask it where a shortcut depends on values (a mask of padding without padding is no mask): traced, they go
    the way that is right for all values.
    """
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
