"""The optimiser and the device a recipe asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from ...errors import SparsifyError
from ..recipe.settings import OptimizerSettings, TrainSettings


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name over the parameters that train, in the order the model registers them.

    Weight decay reaches every parameter, biases and norms too (timm alone would spare them), unless
    `weight_decay_exclude` says otherwise. Raises SparsifyError for arguments the optimiser refuses.
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
        reason = " ".join(str(error).split())
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


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """Return accelerate's Accelerator for the device and precision asked for.

    accelerate keeps both for the whole process: an earlier run's are replaced. Raises SparsifyError
    for a device that is not there or cannot do the precision, and for a launch in several processes.
    """
    kind, _, index = settings.device.partition(":")
    available = {"cpu": True, "auto": True, "mps": torch.backends.mps.is_available()}
    available |= {name: getattr(torch, name).is_available() for name in ("cuda", "xpu")}
    if not available[kind]:
        raise SparsifyError(f"device: this machine has no {kind} device; 'auto' takes what there is")
    if index:
        module = getattr(torch, kind)
        if int(index) >= module.device_count():
            raise SparsifyError(f"device: no {settings.device}; this machine has {module.device_count()} of them")
        module.set_device(int(index))
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(mixed_precision=settings.precision, cpu=kind == "cpu")
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise SparsifyError(
            f"train.precision: {settings.precision} does not work on {settings.device}: {reason}"
        ) from None
    if settings.precision != "no" and not accelerator.native_amp:
        # accelerate would train in float32 without a word.
        raise SparsifyError(
            f"train.precision: {settings.precision} does not work on {accelerator.device.type}; try bf16"
        )
    if accelerator.num_processes > 1:
        raise SparsifyError("training in several processes is not supported; start a single one")
    return accelerator
