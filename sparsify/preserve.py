"""Context managers that restore modes, random states and numbers of threads after a model ran for something else."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

RandomState: TypeAlias = tuple[Any, Any, Tensor]


def cpu_random_state() -> RandomState:
    """Return the states of the global random generators of Python, NumPy and torch on the CPU."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_cpu_random_state(state: RandomState) -> None:
    """Set the global random generators to a state from `cpu_random_state`."""
    python, numpy, cpu = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)


def seed_cpu(number: int) -> None:
    """Seed the global random generators of Python, NumPy and torch on the CPU with a number below 2^64."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


@contextmanager
def keep_random_states(device: torch.device | None = None, *, cuda: bool = False) -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch on the CPU and, if it is not the CPU, `device` at the end.

    With `cuda`, restore those of all CUDA devices instead of `device`, if CUDA is initialised.
    """
    state = cpu_random_state()
    kind, devices = "cuda", list[Any]()
    if cuda and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        devices = list(range(torch.cuda.device_count()))
    elif device is not None and device.type not in ("cpu", "meta"):
        kind, devices = device.type, [device]
    try:
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        set_cpu_random_state(state)


@contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Restore each module's own mode at the end: a user may keep some modules in eval mode while training."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode:
                module.training = mode


@contextmanager
def keep_values(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of buffers at the end."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in before:
                tensor.copy_(values)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute on `number` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
