"""Functions run by several processes of one gloo group, forked from a process that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
_PRELOADED = ["sparsify.pruning.pruner", "sparsify.surgery.conversion.convert", "torch.distributed.tensor"]
_PRELOADED += ["sparsify.training.run.train", "timm.optim", "torch.utils.tensorboard"]


def launched(size: int, work: Callable[..., Any], folder: Path, *arguments: Any, seconds: float = 180) -> list[Any]:
    """Return what `work(rank, *arguments)` returns in each of `size` processes that a launcher's variables tell of.

    A process that was killed returns None.
    """
    environment = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environment |= {"LOCAL_WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    return _on(size, work, folder, arguments, seconds, environment if size > 1 else {})


def on_ranks(size: int, work: Callable[..., Any], folder: Path, *arguments: Any, seconds: float = 180) -> list[Any]:
    """Return what `work(rank, *arguments)` returns in each of `size` processes; an error of one is raised.

    `folder` is an empty one, where they meet and leave what they return. None is left running.
    """
    return _on(size, work, folder, arguments, seconds, None)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _on(
    size: int,
    work: Callable[..., Any],
    folder: Path,
    arguments: tuple[Any, ...],
    seconds: float,
    environment: dict[str, str] | None,
) -> list[Any]:
    import torch

    if hasattr(os, "fork"):
        _CONTEXT.set_forkserver_preload(_PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[BaseProcess] = [
        _CONTEXT.Process(target=_run, args=(rank, size, work, str(folder), arguments, environment))
        for rank in range(size)
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
    allowed = {0} if environment is None else {0, -signal.SIGKILL}
    assert {process.exitcode for process in processes} <= allowed
    made = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in made]


def _run(
    rank: int,
    size: int,
    work: Callable[..., Any],
    folder: str,
    arguments: tuple[Any, ...],
    environment: dict[str, str] | None,
) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if environment:
        os.environ.update({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    try:
        if environment is not None:
            torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
            return
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=170)
        )
        torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"process {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None
