"""What the bits of a run depend on besides its recipe: versions and hardware."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...hardware import processor


def conditions(device: torch.device, processes: int = 1) -> dict[str, str]:
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
    """Return what of `before` is different `now`, an item each."""
    # Another kind of device brings names of its own; that it is another one says enough.
    both = [name for name in before if name in now] if before.get("device") == now["device"] else ["device"]
    return [f"{name} {now[name]} instead of {before.get(name)}" for name in both if now[name] != before.get(name)]
