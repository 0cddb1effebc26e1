"""The hardware of measurements and training runs. Needs no torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# More threads than this are a mistake; the system may run out of them, or start them for hours.
MOST_THREADS = max(1024, 4 * (os.cpu_count() or 1))


def processor() -> str:
    """Return the name of the processor as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
