"""Checks of one model's conversion, on an example input."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsify import SparsifyError, convert, verify
from sparsify.calls import tensors_in
from sparsify.surgery.conversion.convert import ConversionReport

from .models import Try, arguments, create, fill, tries

Row = dict[str, Any]


def check_conversion(model: str) -> Row:
    """Build a model small, convert it and say what holds.

    `verdict` is "holds", "part" (something could not be compared, see `notes`), "fails" (see `problems`), or the stage
    that raised: "no input", "convert", "verify".
    """
    ways, best = tries(model), None
    while True:
        built = first_that_runs(model, ways)
        if isinstance(built, dict):
            return best or built
        row = check_converted(*built)
        if not any(note.startswith("train mode was not checked") for note in row["notes"]):
            return row
        best = best or row  # a larger input may do, for a pooling in a head that is there in train mode only


def first_that_runs(model: str, ways: Iterator[Try]) -> Row | tuple[nn.Module, tuple[Any, ...], Try]:
    """Return a model, its arguments and how it was made, for the first of `ways` in which it runs in eval mode."""
    errors: list[str] = []
    for made in ways:
        try:
            network = create(model, made.options)
            fill(network)
            given = arguments(model, made.shape)
            with torch.no_grad():
                network.eval()(*copy.deepcopy(given))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a size that a model does not take ends in errors of any kind
            if "allocate memory" in str(error):
                raise MemoryError("not enough memory") from None
            errors.append(f"{made}: {in_one_line(error)}")
            continue
        return network, given, made
    return {"verdict": "no input", "problems": errors[-1:]}


def check_converted(network: nn.Module, given: tuple[Any, ...], made: Try | str) -> Row:
    """Convert `network` and hold it against what it was: names, keys, weights reached, bits, masks."""
    row: Row = {"bits": "cpu", "input": str(made)}
    network.eval()
    before = {mode: _run(network, given, mode == "train") for mode in ("eval", "train")}
    row["notes"] = [f"{mode}: an output is not finite" for mode, kept in before.items() if not _finite(kept)]
    if apply_conversion(network, row) is None:
        return row
    after = {mode: _run(network, given, mode == "train") for mode in before}
    try:
        proof = verify(network, given)
    except SparsifyError as error:
        return {**row, "verdict": "verify", "problems": [in_one_line(error)]}
    row |= {
        "live": len(proof.live),
        "unused": len(proof.unused),
        "eval": proof.identical_eval,
        "train": proof.identical_train,
        "leaks": len(proof.leaks),
    }
    row["notes"] += proof.notes
    row["problems"] += proof.problems[:5]
    for mode in before:  # unlike verify, which makes the plain model from the converted one
        row["same_as_before"] = row.get("same_as_before", []) + [_same(before[mode], after[mode])]
        if row["same_as_before"][-1] is False and row[mode] is not None:
            row["problems"].append(f"{mode}: the output is not the one before the conversion")
    # Nearly every attention has notes on arguments that no call passes; the example's outputs are compared in full.
    noted = [note for note in row["notes"] if not note.startswith("not compared with arguments that the example")]
    complete = row["eval"] and row["train"] and not noted
    row["verdict"] = "fails" if row["problems"] else "holds" if complete else "part"
    return row


def apply_conversion(network: nn.Module, row: Row) -> ConversionReport | None:
    """Convert in place and put into `row` the numbers of weights and masks, and whether keys and repr are kept.

    `missed` are the weights that by their modules' types should carry a mask and do not, with the report's reason.
    """
    keys, text, targets = list(network.state_dict()), repr(network), weights_by_type(network)
    row["weights"] = sum(p.dim() > 1 and p.is_floating_point() for _, p in network.named_parameters())
    row["problems"] = []
    try:
        report = convert(network)
    except Exception as error:  # noqa: BLE001 - any error of convert is what this looks for
        row |= {"verdict": "convert", "problems": [in_one_line(error)]}
        return None
    masks = {f"{name}_mask" for name in report.masked}
    now = list(network.state_dict())
    reached = {id(network.get_parameter(name)) for name in report.masked}
    row["masked"] = len(reached)
    row["how"] = dict(Counter(report.masked.values()))
    row["skipped"] = dict(Counter(report.skipped.values()))
    row["remarks"] = report.notes
    row["keys"] = [key for key in now if key not in masks] == keys and masks <= set(now)
    if not row["keys"]:
        row["problems"].append("the state_dict is not the old one and the masks")
    if repr(network) != text:
        row["problems"].append("the repr changed")
    missed = [name for name, parameter in targets.items() if id(parameter) not in reached]
    row["missed"] = {name: report.skipped.get(name, "not listed") for name in missed}
    return report


def weights_by_type(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of conv, linear, attention and recurrent modules, by the modules' types alone."""
    found: dict[str, nn.Parameter] = {}
    for path, module in network.named_modules():
        names: tuple[str, ...] = ()
        if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear)):
            names = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        elif isinstance(module, nn.RNNBase):
            names = tuple(name for name in module._parameters if name.startswith("weight_"))
        for name in names:
            parameter = module._parameters.get(name)
            if parameter is not None:
                found[f"{path}.{name}" if path else name] = parameter
    return found


def _run(network: nn.Module, given: tuple[Any, ...], training: bool) -> list[Tensor] | None:
    """Return the outputs and the batch norms' statistics after a pass; None if the model does not run in this mode."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers() if "running_" in name}
    torch.manual_seed(3)
    try:
        with torch.no_grad():
            outputs = tensors_in(network.train(training)(*copy.deepcopy(given)))
        return outputs + [network.get_buffer(name).clone() for name in buffers]
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - verify notes what train mode raises
        return None
    finally:
        network.eval()
        for name, buffer in buffers.items():
            network.get_buffer(name).copy_(buffer)


def _finite(values: list[Tensor] | None) -> bool:
    return values is None or all(bool(value.isfinite().all()) for value in values)


def _same(first: list[Tensor] | None, second: list[Tensor] | None) -> bool | None:
    if first is None or second is None:
        return None if first is second else False
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | (a != a) & (b != b)).all()) for a, b in pairs
    )


def in_one_line(error: BaseException) -> str:
    """Return an error as "Type: first words", short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:240]}"
