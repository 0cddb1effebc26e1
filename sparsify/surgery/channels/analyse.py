"""Channel groups: which of a model's channels can only be removed together, and which are dead.

A *group* is a set of coupled channels: the rows of the weights that produce them, their entries in biases and norms,
and the columns that read them. `analyse` finds the groups by recording one forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, get_args

from torch import nn

from ...arguments import takes
from ...calls import explained, inputs_of
from ...errors import unknown
from ..analysis.coupling import Heads
from ..conversion.fold import fold
from ..mask_state.masks import all_masked_parameters
from ..recording.recorder import record
from ..rules.table import Rule, checked_rules
from ..unwrap import unwrap
from .agreement import agreed
from .groups import Channels, Operation
from .study import Dead, study

__all__ = ["Channels", "Dead", "Operation", "analyse", "check_choice"]


@takes(model=nn.Module, rules=(Mapping, NoneType), examples=(list, tuple))
def analyse(
    model: nn.Module,
    example_input: Any,
    *,
    heads: Heads = "whole",
    rules: Mapping[str, Rule] | None = None,
    examples: Sequence[Any] = (),
) -> Channels:
    """Return the channel groups of `model`, found by running it once, in eval mode, on `example_input`.

    A group is a set of channels, in one layer or several, that can only be removed together. `model` may be plain or
    converted and is not changed; of a model inside torch.compile or data parallelism, the names are those inside.

    - `example_input`: a tensor, a tuple of positional arguments, a dict of keyword arguments or `sparsify.Inputs`.
    - `heads`: "whole": in attention, a group is a head; "size": a group is one entry of every head, of the queries and
      keys or of the values. A model that lost such entries must not switch to fused attention afterwards.
    - `rules`: rules by operation name ("mylib::gate"), which take precedence over the built-in ones.
    - `examples`: further inputs. Groups that differ for one of them are left out, and a barrier reports how many.

    Raises SparsifyError for another value of `heads`, a value in `rules` that is not a Rule and an input that the
    forward does not take, and whatever the forward raises.
    """
    check_choice("analyse", "heads", heads, Heads)
    model = unwrap(model)
    if any(True for _ in all_masked_parameters(model)):
        model = fold(model)
    own = checked_rules("analyse", rules)
    inputs = inputs_of(example_input, "analyse", model)
    with explained(inputs, "analyse"):
        recording = record(model, inputs)
    channels = study(recording, heads=heads, rules=own).channels
    for number, other in enumerate(examples):
        found = study(record(model, inputs_of(other, "analyse", model)), heads=heads, rules=own).channels
        channels = agreed(channels, found, f"example {number + 2}")
    return channels


def check_choice(where: str, what: str, given: str, allowed: Any) -> None:
    """Raise SparsifyError unless `given` is one of the `allowed` values, a Literal; `where` and `what` name it."""
    if given not in get_args(allowed):
        raise unknown(what, given, get_args(allowed), where=where)
