"""How this process was started, according to its environment: alone, or by a launcher. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import SparsifyError

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MPI = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")
_ADVICE = "start with torchrun --nproc-per-node N -m sparsify.cli train RECIPE, or unset it"


@dataclass(frozen=True)
class Launch:
    """The rank of this process, the number of processes, and its rank on this machine.

    `restarts` is how often torchrun has restarted the processes, `agent` identifies the torchrun of this machine, "" if
    there is none.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0
    agent: str = ""


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Return how this process was started.

    Raises SparsifyError, one line, if only some of a launcher's variables are set: each process would then train by
    itself.
    """
    given = os.environ if environment is None else environment
    missing = [name for name in _LAUNCHED if not given.get(name)]
    size = _number(given, "WORLD_SIZE", 1)
    if missing:
        for name in (*_MPI, "WORLD_SIZE"):
            if _number(given, name, 1) > 1:
                raise _refusal(f"{name} is {given[name]}, but {_are_not(missing)} set")
        if given.get("LOCAL_RANK") or _number(given, "RANK", 0):
            name = "LOCAL_RANK" if given.get("LOCAL_RANK") else "RANK"
            raise _refusal(f"{name} is {given[name]}, but {_are_not(missing)} set")
        return Launch()
    rank, local_rank = _number(given, "RANK", 0), _number(given, "LOCAL_RANK", 0)
    _number(given, "MASTER_PORT", 0)
    if not 0 <= rank < size or local_rank < 0:
        raise _refusal(f"RANK is {rank} and LOCAL_RANK {local_rank}, of WORLD_SIZE {size} (from 0)")
    return Launch(rank, size, local_rank, _number(given, "TORCHELASTIC_RESTART_COUNT", 0), _agent(given))


def _agent(given: Mapping[str, str]) -> str:
    # FOLDER/attempt_N/RANK/error.json; every torchrun creates its own FOLDER with a random name.
    return os.path.dirname(os.path.dirname(os.path.dirname(given.get("TORCHELASTIC_ERROR_FILE", ""))))


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name) or str(default)
    if not text.strip().lstrip("-").isdecimal():
        raise _refusal(f"{name} is {text!r:.40}, no whole number")
    return int(text)


def _are_not(missing: list[str]) -> str:
    return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not"


def _refusal(problem: str) -> SparsifyError:
    return SparsifyError(f"environment: {problem}: not set by a launcher such as torchrun; {_ADVICE}")


def check_accelerate(precision: str, environment: Mapping[str, str] | None = None) -> None:
    """Raise SparsifyError for settings of `accelerate launch` that a recipe does not support."""
    given = os.environ if environment is None else environment
    for variable, name in (
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ):
        if given.get(variable, "").lower() in ("true", "1"):
            raise SparsifyError(
                f"accelerate launch: {name} is asked for; leave it out: sparsify train runs DDP, or FSDP2 with "
                "train.shard: true in the recipe (docs/processes.md)"
            )
    asked = given.get("ACCELERATE_MIXED_PRECISION", precision)
    if asked not in ("no", precision):
        raise SparsifyError(
            f"accelerate launch: mixed precision {asked} is asked for, the recipe says {precision}; set train.precision"
        )
    if given.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("", "1"):
        steps = given["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]
        raise SparsifyError(
            f"accelerate launch: {steps} gradient accumulation steps are asked for; set train.accumulate"
        )
