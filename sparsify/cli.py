"""The command line in a clone, its folder `cli/` beside the library: for `python -m sparsify.cli` and `torchrun -m`.

Both look in the working directory first. Where sparsify is installed, `cli/` is the package of this name, which Python
takes before this file.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "cli")]

main = import_module("sparsify.cli.main").main

if __name__ == "__main__":
    main()
