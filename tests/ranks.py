"""Functions run by several processes of one gloo group, forked from a process that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
_PRELOADED = ["sparsify.pruning.pruner", "sparsify.surgery.conversion.convert", "torch.distributed.tensor"]


def on_ranks(size: int, work: Callable[..., Any], folder: Path, *arguments: Any, seconds: float = 60) -> list[Any]:
    """Return what `work(rank, *arguments)` returns in each of `size` processes; an error of one is raised.

    `folder` is an empty one, where they meet and leave what they return. None is left running.
    """
    import torch

    if hasattr(os, "fork"):
        _CONTEXT.set_forkserver_preload(_PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[BaseProcess] = [
        _CONTEXT.Process(target=_run, args=(rank, size, work, str(folder), arguments)) for rank in range(size)
    ]
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join(10)
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _run(rank: int, size: int, work: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=50)
        )
        torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"process {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None
