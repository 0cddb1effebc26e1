"""Make forwards take no value-dependent shortcuts, by announcing that they are traced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch


@contextmanager
def announced_as_traced() -> Iterator[None]:
    """Make `torch.compiler.is_compiling()` return True in the block, as `torch.export` does.

    Libraries check it before a shortcut that depends on values (dropping a padding mask that masks nothing); when
    compiling, they take the path that is right for all values.
    """
    with patch.object(torch.compiler, "_is_compiling_flag", True):
        yield
