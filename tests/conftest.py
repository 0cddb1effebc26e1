"""What holds for all tests: each begins with the same random states, and leaves nothing behind in the process."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

# How long an example takes depends on the machine: it fails no test.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Nothing that is tuned in a test is kept for the user's engines, or known from them; a test sets a folder of its own.
os.environ["SPARSIFY_CACHE"] = os.devnull


# What pytest sets for each test, and libraries when they are first used, by whichever test that is.
_OF_OTHERS = ("PYTEST_CURRENT_TEST", "TORCH", "PYTORCH", "TRITON", "KINETO", "ACCELERATE", "TF_", "KMP_")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_OTHERS)}


def _set_environment(before: dict[str, str]) -> None:
    for name in _environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _flushes() -> bool:
    """Return whether numbers below the normal ones are taken for zeros in this thread, which torch does not tell."""
    return not bool((torch.full((1,), 1e-40) * 0.5).item())


def _none(value: Any) -> None:
    raise AssertionError("no test can be run after this")


_HOOKS = ("_global_forward_", "_global_backward_")


def _global_hooks() -> dict[str, dict[int, Any]]:
    """Return torch's tables of hooks that run in every module."""
    tables = {name: table for name, table in vars(torch.nn.modules.module).items() if name.startswith(_HOOKS)}
    return {name: dict(table) for name, table in tables.items() if isinstance(table, dict)}


def _set_global_hooks(before: dict[str, dict[int, Any]]) -> None:
    for name, table in before.items():
        getattr(torch.nn.modules.module, name).clear()
        getattr(torch.nn.modules.module, name).update(table)


# What a test must leave as it was: how to read it, and to set it.
STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "gradients enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, _none),
    "autocast on the CPU": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda before: torch.set_autocast_enabled("cpu", before),
    ),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda before: torch.use_deterministic_algorithms(before[0], warn_only=before[1]),
    ),
    "numbers flushed to zero": (_flushes, torch.set_flush_denormal),
    "the precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "oneDNN enabled": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "cuDNN's flags": (
        lambda: (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        lambda before: torch.backends.cudnn.set_flags(_deterministic=before[0], _benchmark=before[1]),
    ),
    "hooks of all modules": (_global_hooks, _set_global_hooks),
    "the environment": (_environment, _set_environment),
    "the working directory": (os.getcwd, os.chdir),
}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Begin with the same random states; restore what a test has changed for those after it, and fail it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if "sparsify.runtime.tuning.cache" in sys.modules:
        sys.modules["sparsify.runtime.tuning.cache"]._said.clear()  # lines that are said once in a process
    before = {name: read() for name, (read, _) in STATE.items()}
    yield
    changed = []
    for name, (read, restore) in STATE.items():
        now = read()
        if now != before[name]:
            restore(before[name])
            changed.append(f"{name}: {_differing(before[name], now)}")
    if changed:
        pytest.fail(f"the test leaves changed: {'; '.join(changed)}", pytrace=False)


def _differing(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        names = [name for name in before | now if before.get(name) != now.get(name)]
        return ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in names)
    return f"{before} -> {now}"
