"""What the bits of a run depend on besides its recipe: versions and hardware."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from ...errors import RunError
from ...formats.io.atomic import atomic_write
from ...hardware import processor
from .run_folder import CONDITIONS


def conditions(device: torch.device, processes: int | str = 1) -> dict[str, str]:
    """Return what computes on `device`, by name: equal conditions and an equal recipe give equal bits."""
    found = {"torch": str(torch.__version__), "device": device.type, "processes": str(processes)}
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    else:
        found["processor"] = processor()
        found["instruction set"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = str(torch.get_num_threads())
    return found


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the conditions that differ between `before` and `now`, one text each."""
    # Another kind of device has other conditions; naming the device is enough.
    both = [name for name in before if name in now] if before.get("device") == now["device"] else ["device"]
    return [f"{name} {now[name]} instead of {before.get(name)}" for name in both if now[name] != before.get(name)]


def note_conditions(folder: Path, step: int, device: torch.device, processes: int | str = 1) -> None:
    """Append the conditions from `step` on to a run's conditions.json, unless they are the last ones there."""
    path = folder / CONDITIONS
    try:
        known = json.loads(path.read_bytes()) if step and path.exists() else []
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove it to go on") from None
    versions = {name: version(name) for name in ("sparsify-torch", "timm")} | {"python": platform.python_version()}
    now = conditions(device, processes) | versions
    kept = {name: value for name, value in (known[-1] if known else {}).items() if name not in ("step", "started")}
    if now != kept:
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        atomic_write(path, json.dumps([*known, {"step": str(step), "started": started, **now}], indent=1).encode())
