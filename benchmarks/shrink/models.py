"""One model pruned to half of its units and made smaller, by sparsify and by Torch-Pruning, in turns."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from sparsify import Pruner, convert, fold
from sparsify.relative_error import relative_error
from sparsify.surgery.channels.analyse import Channels, analyse
from sparsify.surgery.shrink.shrink import shrink
from sparsify.surgery.sizes.other_inputs import outputs

from ..coverage.checks import Row, in_one_line
from ..coverage.models import Try, arguments, create, fill, tries
from ..coverage.shrunk import heads, other_values, proof

SPARSITY = 0.5
EXACT = 1e-9  # largest difference that a cut may make in double precision, relative to the largest output
SMALLER = 0.95  # a model with a larger share of its parameters left was not pruned
_SIZE_OPTIONS = {"img_size", "image_size", "input_size"}
_IMAGE = 224


class TooLongError(BaseException):
    """A side ran out of time. Not an Exception, so that neither side catches it."""


def compare_model(model: str, *, rounds: int, seconds: float) -> Row:
    """Build a model at its published size and input size, without values learned, and compare the two on it."""
    made = own_input(model)
    network = create(model, made.options).eval()
    fill(network)
    given = tuple(value[:1] for value in arguments(model, made.shape))
    return {"input": str(made)} | compare(network, given, rounds=rounds, seconds=seconds)


def own_input(model: str) -> Try:
    """Return a function that builds a model as published, with images of 224 pixels, or those of its configuration."""
    ways = [made for made in tries(model) if not _SIZE_OPTIONS & set(made.options)]
    usual = [made for made in ways if made.shape[-1] == _IMAGE]
    return Try({}, (usual or ways)[-1].shape)


def tiny() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a model that takes no time, and its input."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers).eval(), (torch.ones(1, 3, 8, 8),)


def compare(network: nn.Module, given: tuple[Tensor, ...], *, rounds: int, seconds: float) -> Row:
    """Return what each side made of copies of one model: under "ours" and "peer", each within `seconds` of time.

    Rounds alternate between the two and begin with the other each time. They end early once they took `seconds`.
    """
    ignored = heads(network, given)
    before = outputs(network, given)
    sides = {"ours": ours, "peer": peer}
    row: Row = {"parameters": count(network), "ours": {"times": []}, "peer": {"times": []}}
    started = time.process_time()
    for index in range(rounds):
        for name in sides if index % 2 == 0 else reversed(sides):
            if "problem" not in row[name] and (index == 0 or time.process_time() - started < seconds):
                mine = copy.deepcopy(network)
                row[name] |= attempt(sides[name], mine, given, ignored, row[name]["times"], seconds)
                if index == 0 and "problem" not in row[name]:
                    row[name] |= judge(row[name].pop("model"), before, given, row["parameters"])
                row[name].pop("model", None)
    if "problem" not in row["ours"]:
        row["ours"] |= proved(copy.deepcopy(network), given, ignored)
    for name in sides:
        row[name]["verdict"] = "fails" if "problem" in row[name] else "works"
    return row


def ours(network: nn.Module, given: tuple[Tensor, ...], ignored: list[str]) -> tuple[nn.Module, dict[str, float]]:
    """Return a smaller model and the seconds to find groups, to put masks on the least of them, and to cut them out."""
    started = time.process_time()
    channels = analyse(network, given)
    found = time.process_time()
    halve(network, given, ignored, channels=channels)
    chosen = time.process_time()
    small = shrink(network, given, verify=False).model
    return small, {"find": found - started, "mask": chosen - found, "cut": time.process_time() - chosen}


def halve(
    network: nn.Module,
    given: tuple[Tensor, ...],
    ignored: list[str],
    sparsity: float = SPARSITY,
    channels: Channels | None = None,
) -> None:
    """Mask the units of smallest L2 norm, in place: this share of every coupled layer."""
    convert(network, ignore=ignored)
    settings = {"granularity": {"name": "unit", "aggregate": "l2"}, "scope": "layer", "sparsity": sparsity}
    Pruner(network, settings, total_steps=0, example_input=given, channels=channels).start()


def peer(network: nn.Module, given: tuple[Tensor, ...], ignored: list[str]) -> tuple[nn.Module, dict[str, float]]:
    """Return a smaller model and the seconds to build the dependency graph, and to choose channels and cut them out."""
    started = time.process_time()
    pruner = dependencies(network, given, ignored)
    found = time.process_time()
    pruner.step()
    return network, {"find": found - started, "cut": time.process_time() - found}


def dependencies(
    network: nn.Module, given: tuple[Tensor, ...], ignored: list[str], sparsity: float = SPARSITY, **more: Any
) -> Any:
    """Return Torch-Pruning's pruner by L2 norm of groups, layer by layer, which changes the model in its `step`."""
    return torch_pruning.pruner.BasePruner(
        network,
        given[0] if len(given) == 1 else given,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=sparsity,
        ignored_layers=[network.get_submodule(name.rpartition(".")[0]) for name in ignored],
        **more,
    )


def attempt(
    side: Callable[..., tuple[nn.Module, dict[str, float]]],
    network: nn.Module,
    given: tuple[Tensor, ...],
    ignored: list[str],
    times: list[dict[str, float]],
    seconds: float,
) -> Row:
    """Let one side work on its own copy, add to `times` and return the model, or the problem."""
    try:
        with at_most(seconds):
            small, parts = side(network, given, ignored)
    except TooLongError:
        return {"problem": f"not finished in {seconds:.0f} s"}
    except Exception as error:  # noqa: BLE001 - any error of either is what this looks for
        return {"problem": in_one_line(error)}
    times.append(parts)
    return {"model": small}


def judge(small: nn.Module, before: list[Tensor], given: tuple[Tensor, ...], whole: int) -> Row:
    """Return what is left of a model and how far its outputs moved; a problem if it does not run or is not smaller."""
    try:
        after = outputs(small.eval(), given)
    except Exception as error:  # noqa: BLE001 - a model that was cut wrongly ends in errors of any kind
        return {"problem": f"does not run: {in_one_line(error)}"}
    left = count(small)
    if [value.shape for value in after] != [value.shape for value in before]:
        return {"after": left, "problem": "its outputs have other shapes"}
    if left >= SMALLER * whole:
        return {"after": left, "problem": f"{left / whole:.1%} of the parameters are left"}
    return {"after": left, "changed": relative_error(after, before)}


def proved(network: nn.Module, given: tuple[Tensor, ...], ignored: list[str]) -> Row:
    """Return the seconds of a cut with shrink's own proof, and the difference that it makes for other images."""
    halve(network, given, ignored)
    started = time.process_time()
    try:
        small = shrink(network, given, verify=True).model
        row: Row = {"with_proof": time.process_time() - started}
        row |= proof(fold(network), small, other_values(given))
    except Exception as error:  # noqa: BLE001 - a proof that fails is a failure of ours
        return {"problem": f"not proved: {in_one_line(error)}"}
    return (
        row if row["difference"] <= EXACT else {**row, "problem": f"the cut moves outputs by {row['difference']:.1e}"}
    )


def count(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TooLongError in what runs here once `seconds` of processor time are over."""

    def ring(*_: Any) -> None:
        raise TooLongError

    previous = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
