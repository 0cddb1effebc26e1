"""shrink(): remove dead channels from a model and check that its outputs stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import takes
from ...calls import explained, inputs_of
from ...errors import SparsifyError, listed
from ..analysis.coupling import Heads
from ..analysis.mac_counts import multiply_adds
from ..channels.analyse import check_choice
from ..channels.study import Dead, Study, study
from ..conversion.fold import fold
from ..mask_state.masks import all_masked_parameters, masked_sources
from ..recording.broadcast_forms import along
from ..recording.ops import Recording
from ..recording.recorder import record
from ..rules.table import Rule, checked_rules
from ..unwrap import unwrap
from .attempts import Attempts
from .bias_absorption import fixed_biases
from .configuration import follow_configurations
from .cuts import Cuts, cuts_of
from .equivalence import Proof
from .report import ShrinkReport

__all__ = ["ShrinkReport", "shrink"]

_NO_MASKS = "everything: no mask of this model removes anything; dead='zeros' also removes channels that are zero now"


@takes(model=nn.Module, round_to=(Integral, NoneType), verify=bool, rules=(Mapping, NoneType), examples=(list, tuple))
def shrink(
    model: nn.Module,
    example_input: Any,
    *,
    round_to: int | None = None,
    verify: bool = True,
    heads: Heads = "whole",
    rules: Mapping[str, Rule] | None = None,
    examples: Sequence[Any] = (),
    dead: Dead = "masks",
) -> ShrinkReport:
    """Return a smaller plain model of the same class, without the channels that have no influence on the outputs.

    A channel is dead if it is zero for every input, if nothing reads it, or if it is constant and the biases of the
    layers that read it can absorb the constant. It is removed if all channels coupled to it are dead too. `model` is
    not changed. Of a model inside torch.compile, (distributed) data parallelism or an average, the inner one is shrunk.

    - `example_input`: a tensor, a tuple of positional arguments, a dict of keyword arguments or `sparsify.Inputs`.
    - `dead`: "masks": only channels that the masks of `model` make dead, whatever its parameters may still learn;
      "zeros": also channels that are dead because of the parameters' current values.
    - `round_to`: keep channel counts at multiples of this, by keeping some dead channels.
    - `heads`, `rules`: as in `analyse`.
    - `examples`: further inputs; channels that are not dead, or coupled differently, for one of them stay.
    - `verify`: compare the outputs with those of `model`, in float64 and in the model's precision, on the examples and
      on another batch and another size that the model takes.

    Raises RunError, which names the first module that differs, if no smaller model gives the same outputs, and
    SparsifyError for a `round_to` below 1 and for other values of `heads` and `dead`.
    """
    _check(round_to, heads, dead)
    model = unwrap(model)
    example_input = inputs_of(example_input, "shrink", model)
    examples = [inputs_of(other, "shrink: examples", model) for other in examples]
    small = fold(model).eval()
    own = checked_rules("shrink", rules)
    with explained(example_input, "shrink"):
        recording = record(small, example_input)
    masks = removing_masks(model, recording)

    def study_of(recording: Recording) -> Study:
        fixed = replace(recording, fixed_biases=fixed_biases(model, small))
        return study(fixed, killable=False, heads=heads, dead=dead, masks=masks, rules=own)

    parameters, proof = _entries(small), Proof(small, example_input, examples, wanted=verify)
    attempts = Attempts(small, example_input, study_of(recording), proof, lambda other: study_of(record(small, other)))
    attempts.until_proved(round_to, examples)
    changed = bool(attempts.removed.any())
    configuration = follow_configurations(small, example_input) if verify and changed else ""
    small.train(model.training)
    after = proof.multiply_adds if proof.multiply_adds is not None else _cost(record(small, example_input))
    notes = [_NO_MASKS] if dead == "masks" and not masks else []
    if changed and recording.idle:
        idle = listed(recording.idle, 3)
        notes.append(f"{idle}: not cut, since not run with the example; another call of them may fail")
    report = _report(attempts, (parameters, _entries(small)), (_cost(recording), after), notes)
    return replace(report, configuration=configuration)


def _check(round_to: int | None, heads: str, dead: str) -> None:
    if round_to is not None and round_to < 1:
        raise SparsifyError(f"shrink: round_to={round_to}: channel counts are rounded to multiples of 1 or more")
    check_choice("shrink", "heads", heads, Heads)
    check_choice("shrink", "dead", dead, Dead)


def _report(
    attempts: Attempts, parameters: tuple[int, int], multiply_adds: tuple[int, int], notes: list[str]
) -> ShrinkReport:
    found, proof, removed = attempts.found, attempts.proof, attempts.removed
    return ShrinkReport(
        model=attempts.model,
        cuts=cuts_of(attempts.model) or Cuts({}),
        groups=found.channels.groups,
        removed=int(removed.sum()),
        pruned=int((removed & found.pruned).sum()),
        parameters=parameters,
        multiply_adds=multiply_adds,
        difference=proof.difference,
        seconds=proof.seconds,
        kept=(*attempts.reasons, *found.kept_constants, *notes),
        proved=tuple(variant.what for variant in proof.variants),
        training=proof.training,
        uncounted=found.channels.uncounted,
        bound=tuple(module or "the model" for module in proof.that_ask_for_sizes()) if proof.wanted else (),
    )


def removing_masks(model: nn.Module, recording: Recording) -> dict[str, Tensor]:
    """Return the masks that remove something, by the first name of their parameter in the folded model's recording.

    A mask that keeps or removes only whole rows is returned as a broadcast form with one entry per row.
    """
    found, computed = {}, masked_sources(model)
    for weight in all_masked_parameters(model):
        value = recording.state.get(computed.get(weight.name, weight.name))
        if value is None or value.shape != weight.mask.shape:
            continue
        # Row extremes of bytes are found many times faster than those of bools.
        rows = weight.mask.reshape(len(weight.mask), -1).contiguous().view(torch.uint8)
        whole = rows.amin(1).to(torch.bool)
        if not bool(whole.all()):
            by_row = torch.equal(whole, rows.amax(1).to(torch.bool))
            found[value.names[0]] = along(whole, 0, len(value.shape)) if by_row else weight.mask
    return found


def _entries(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _cost(recording: Recording) -> int:
    return sum(multiply_adds(op) for op in recording.ops[: recording.eval_count])
