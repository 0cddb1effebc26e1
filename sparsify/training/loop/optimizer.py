"""The optimiser and the device a recipe asks for."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ...errors import RunError, SparsifyError, one_line
from ...processes.launch import Launch, check_accelerate
from ...processes.ranks import ALONE, Ranks
from ..recipe.settings import OptimizerSettings, TrainSettings

WAIT = timedelta(minutes=30)  # how long a process waits for another, which may be downloading the data


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name over the trained parameters, in the order the model registers them.

    Weight decay applies to every parameter, also to biases and norms, which timm excludes by default; to exclude them,
    set `weight_decay_exclude`. Raises SparsifyError for arguments the optimiser refuses.
    """
    # Slow to import.
    from timm.optim import create_optimizer_v2

    arguments = dict(settings.arguments)
    if settings.nesterov is not None:
        arguments["nesterov"] = settings.nesterov
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            list(_groups(model, settings)),
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **arguments,
        )
        return optimizer
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        if "nesterov" in reason:
            reason = "it has no nesterov; leave that out, or set train.optimizer.nesterov=null"
        raise SparsifyError(f"train.optimizer: {settings.name} refuses its settings: {reason}") from None


def _groups(model: nn.Module, settings: OptimizerSettings) -> Iterator[dict[str, Any]]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = [p for p in parameters if settings.weight_decay_exclude == "bias_and_norm" and p.ndim < 2]
    spared_ids = {id(parameter) for parameter in spared}
    yield {"params": [parameter for parameter in parameters if id(parameter) not in spared_ids]}
    if spared:
        yield {"params": spared, "weight_decay": 0.0}


def make_accelerator(settings: TrainSettings, *, launch: Launch | None = None) -> Accelerator:
    """Return accelerate's Accelerator for the device and precision of `settings`; it joins the processes of `launch`.

    accelerate keeps both for the whole process: an earlier run's are replaced. Raises SparsifyError for a device that
    is missing or cannot do the precision, RunError if the other processes cannot be found.
    """
    launch = launch or Launch()
    cpu = _choose_device(settings.device, launch)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        if launch.restarts and launch.size > 1 and not distributed.is_initialized():
            _join_restarted(launch, "gloo" if cpu else "nccl")
        group = [InitProcessGroupKwargs(timeout=WAIT)] if launch.size > 1 else None
        accelerator = Accelerator(mixed_precision=settings.precision, cpu=cpu, kwargs_handlers=group)
    except distributed.DistError as error:
        reason = one_line(error, 200)
        raise RunError(f"the {launch.size} processes did not find each other: {reason}") from None
    except (ValueError, ImportError) as error:
        reason = one_line(error)
        raise SparsifyError(
            f"train.precision: {settings.precision} does not work on {settings.device}: {reason}"
        ) from None
    if settings.precision != "no" and not accelerator.native_amp:
        # accelerate would train in float32 without a word.
        raise SparsifyError(
            f"train.precision: {settings.precision} does not work on {accelerator.device.type}; try bf16"
        )
    if accelerator.num_processes != launch.size:
        raise SparsifyError(
            f"device: {settings.device} runs in one process, {max(launch.size, accelerator.num_processes)} are started"
        )
    return accelerator


def _choose_device(device: str, launch: Launch) -> bool:
    """Make `device` the current one and return whether that is the CPU; SparsifyError if it is not available."""
    kind, _, index = device.partition(":")
    available = {"cpu": True, "auto": True, "mps": torch.backends.mps.is_available()}
    available |= {name: getattr(torch, name).is_available() for name in ("cuda", "xpu")}
    if not available[kind]:
        raise SparsifyError(f"device: this machine has no {kind} device; 'auto' takes what there is")
    if index and launch.size > 1:
        raise SparsifyError(f"device: {device} is one device, and {launch.size} processes are started: {kind}")
    if index:
        module = getattr(torch, kind)
        if int(index) >= module.device_count():
            raise SparsifyError(f"device: no {device}; this machine has {module.device_count()} of them")
        module.set_device(int(index))
    here = torch.cuda.device_count() if kind in ("cuda", "auto") else 0
    if launch.size > 1 and launch.local_rank >= here > 0:
        raise SparsifyError(f"device: process {launch.local_rank} of this machine has no GPU: there are {here}")
    # Without a GPU, accelerate joins several processes only if it is asked for the CPU.
    return kind == "cpu" or (launch.size > 1 and kind == "auto" and not (available["cuda"] or available["xpu"]))


def _join_restarted(launch: Launch, backend: str) -> None:
    """Join the processes that torchrun restarted. With `--master-port` its store keeps the keys of the earlier ones.

    The prefix keeps the addresses of the earlier processes from being taken for those of the new ones.
    """
    store, rank, size = next(rendezvous("env://", timeout=WAIT))
    store = PrefixStore(f"start {launch.restarts}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAIT)


@contextmanager
def joined(settings: TrainSettings, launch: Launch) -> Iterator[Ranks]:
    """Yield the processes of a launch, joined to a group through accelerate.

    They stay joined until they end: torchrun's store allows no second rendezvous under the same names.
    """
    if launch.size == 1:
        yield ALONE
        return
    check_accelerate(settings.precision)
    if not distributed.is_initialized():
        atexit.register(_leave_group)
    make_accelerator(settings, launch=launch)
    on_cpu = "gloo" in distributed.get_backend()
    group = distributed.group.WORLD if on_cpu else distributed.new_group(backend="gloo", timeout=WAIT)
    _FAILED.add(launch)
    yield Ranks(launch.rank, launch.size, launch.local_rank, group)
    _FAILED.clear()


_FAILED: set[Launch] = set()  # launches whose training has not finished


def _leave_group() -> None:
    """Leave the group when the process ends; after an error others may be gone, and leaving would wait for them."""
    if not _FAILED and distributed.is_initialized():
        distributed.destroy_process_group()
