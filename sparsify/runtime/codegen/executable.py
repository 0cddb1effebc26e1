"""Executable memory for machine code, and whether this machine and system can run it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import platform
import sys

import numpy as np

from ..kernels.simd import WIDTH

ACCUMULATORS = 31  # registers with sums in generated code; one more holds the input
_ARCHITECTURES = ("x86_64", "amd64")


class Executable:
    """Machine code in pages of its own, executable and read-only, freed with this object."""

    def __init__(self, code: bytes) -> None:
        """Raises OSError if the system does not allow it."""
        self._pages = mmap.mmap(-1, max(len(code), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # Megabytes of code need more pages of the usual size than the TLB has entries.
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # optional: a kernel may not support it
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self._pages.write(code)
        view = np.frombuffer(self._pages, dtype=np.uint8)
        self.address: int = view.ctypes.data
        size = -(-len(self._pages) // mmap.PAGESIZE) * mmap.PAGESIZE
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(self.address, size, mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "the system lets no memory be made executable")


@functools.cache
def refusal() -> str | None:
    """Return why code that is generated at run time cannot be used here, None if it can: AVX-512 on Linux."""
    if WIDTH != 16 or platform.machine().lower() not in _ARCHITECTURES or not sys.platform.startswith("linux"):
        return "no processor with AVX-512, or not on Linux"
    try:
        Executable(b"\xc3")
    except (OSError, AttributeError) as error:
        return str(error)
    return None
