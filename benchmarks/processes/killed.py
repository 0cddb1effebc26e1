"""`sparsify` in one process of a launch, which kills itself with `kill -9` at a known place."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

KINDS = ("one process", "all processes", "while a checkpoint is written")
_CALL = 9


def _kill_at(owner: Any, name: str, number: int) -> None:
    """Kill this process before a call, counted from 1, of a function."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def main() -> None:
    """Run the command line with the arguments after the first, which names the place."""
    kind, *arguments = sys.argv[1:]
    rank = int(os.environ["RANK"])
    warnings.simplefilter("ignore")
    from cli import main as sparsify
    from sparsify.formats.io import atomic
    from sparsify.training.run.keeper import Keeper

    if kind == KINDS[1] or (kind == KINDS[0] and rank == 1):
        _kill_at(Keeper, "pause", _CALL)
    elif kind == KINDS[2] and rank == 0:
        _kill_at(atomic, "_write_all", 60)
    sparsify(arguments)


if __name__ == "__main__":
    main()
