"""verify(): check a conversion on an example input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import takes
from ...calls import Inputs, explained, inputs_of
from ...errors import listed
from ...preserve import keep_random_states
from ..copy_on_write import CopyOnWrite
from ..mask_state.masks import MaskedWeight, all_masked_parameters, masked_parameters
from .leak_check import DenseWeights, FusedOperations, walk
from .same_bits import (
    EVAL,
    EVAL_WITH_GRADIENTS,
    EXTRA_MODES,
    REQUIRED,
    TRAIN,
    Inspect,
    Mode,
    Runs,
    left_out,
)

_LARGE = 1 << 12  # entries


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`. A comparison that could not be made is `None`, and `notes` says why.

    `identical_eval` and `identical_train`: whether the bits equal those of the model without masks (in train mode with
    the same seeds, including gradients and buffers). `modes`: the same for further modes, by name: with and without
    gradients, under autocast, with optional arguments left out. `live`: weights whose mask autograd reaches in train or
    eval mode. `without_gradient`: weights that the forward uses masked, but only where no gradient flows (after detach,
    topk, argmax). `unused`: weights that the forward does not use in either mode. `dense`: weights also used without
    their mask. `leaks`: operations that saw a dense weight under random half masks. `unmasked`: parameters without a
    mask that products used. Extra parameters with masks (`mask_also`) count as weights here.
    """

    identical_eval: bool | None
    identical_train: bool | None
    masked: list[str]
    live: list[str]
    unused: list[str]
    dense: list[str]
    leaks: list[str]
    notes: list[str] = field(default_factory=list)
    modes: dict[str, bool | None] = field(default_factory=dict)
    without_gradient: list[str] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)

    @property
    def dead(self) -> list[str]:
        """Weights that the forward uses, but whose mask has no effect."""
        quiet = {*self.live, *self.unused, *self.without_gradient}
        return [name for name in self.masked if name not in quiet]

    @property
    def problems(self) -> list[str]:
        """One line for each problem; empty if the conversion is correct."""
        lines = []
        if self.identical_eval is False:
            lines.append("the outputs in eval mode differ from the model without masks")
        if self.identical_train is False:
            lines.append("the outputs, gradients or buffers in train mode differ from the model without masks")
        lines += [f"the outputs in {name} differ from the model without masks" for name in self._differing]
        lines += [f"{name}: its mask has no effect" for name in self.dead]
        lines += [f"{name}: also used without its mask" for name in self.dense]
        return lines + self.leaks

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def _differing(self) -> list[str]:
        return [name for name, same in self.modes.items() if same is False]

    def __str__(self) -> str:
        if self.problems:
            return "not verified: " + "; ".join(self.problems)
        same = {True: "same bits", None: "not compared"}
        counts = [f"{len(self.live)} of {len(self.masked)} masks live"]
        counts += [f"{len(self.unused)} not used by the forward"] if self.unused else []
        counts += [f"{len(self.without_gradient)} used without a gradient"] if self.without_gradient else []
        warning = "" if self.masked else "; warning: no weight is masked"
        return (
            f"verified: {same[self.identical_eval]} in eval mode, {same[self.identical_train]} in train mode, "
            f"{', '.join(counts)}, no dense weight seen under half masks{warning}"
        )


@takes(model=nn.Module, kwargs=(Mapping, NoneType))
def verify(model: nn.Module, args: Any = (), kwargs: dict[str, Any] | None = None) -> VerifyReport:
    """Return a report whose `ok` says whether the conversion of `model` is correct on one input.

    `args` is a tensor, a tuple of positional arguments, a dict of keyword arguments (like `kwargs`) or
    `sparsify.Inputs(*args, **kwargs)`. Only copies of `model` run. Three things are checked:

    - With all-ones masks, outputs equal those of the plain model bit for bit: in eval and train mode, with and without
      gradients, under autocast to bfloat16, with and without optional arguments; in train mode gradients and buffers
      too. Both models start from the same state and seeds (torch, Python, NumPy). If the plain model does not repeat
      its own bits, or a mode cannot run, that mode is not compared, and a note says so; another note names optional
      arguments that the example leaves out.
    - Autograd reaches every mask in train or eval mode, or the masked weight is used where no gradient flows.
    - With random half masks, no conv, linear, attention or recurrent operation sees a dense weight.

    Raises SparsifyError for an input that the forward does not take, and whatever the forward raises in eval mode both
    without and with gradients.
    """
    inputs = inputs_of(args, "verify")
    inputs = inputs_of(Inputs(*inputs.args, **inputs.kwargs, **(kwargs or {})), "verify", model)
    with keep_random_states(cuda=True), explained(inputs, "verify"), CopyOnWrite() as memory:
        runs = Runs(model, inputs.args, dict(inputs.kwargs), memory)
        runs.masks = {id(w.mask): torch.ones_like(w.mask) for w in all_masked_parameters(model)}
        return _verify(runs)


def _verify(runs: Runs) -> VerifyReport:
    names = list(masked_parameters(runs.model))
    empty = {name for name, weight in masked_parameters(runs.model).items() if not weight.mask.numel()}
    live, reached, dense = empty, set[str](), set[str]()  # a mask without entries has all the effect it can have

    def look(copied: nn.Module, outputs: list[Tensor]) -> None:
        walk(outputs, masked_parameters(copied), live, reached, dense)

    same, ran, notes = _compared(runs, look)
    identical_eval = same.pop(EVAL.name)
    watched = _watched(runs, ran)
    leaks = list(dict.fromkeys(watched.found))
    unmasked = sorted(watched.unmasked)
    used = [name for name in names if name in watched.used and name not in live]
    notes += [f"used without a gradient: {listed(used)}"] if used else []
    notes += ["no weight is masked"] if not names else []
    absent = left_out(runs.model, runs.args, runs.kwargs)
    notes += [f"not compared with arguments that the example leaves out: {listed(absent)}"] if absent else []
    notes += [f"used by products without a mask: {listed(unmasked)}"] if unmasked else []
    return VerifyReport(
        identical_eval,
        same.pop(TRAIN.name),
        names,
        [name for name in names if name in live],
        [name for name in names if name not in live | reached and name not in used],
        [name for name in names if name in dense and name in live],
        leaks,
        notes,
        same,
        used,
        unmasked,
    )


def _compared(runs: Runs, look: Inspect) -> tuple[dict[str, bool | None], list[Mode], list[str]]:
    """Return {mode: whether the bits are the same, None if not compared}, the modes that ran, and notes."""
    same: dict[str, bool | None] = {}
    try:
        same[EVAL.name], reason = runs.same(EVAL)
        notes = [f"{EVAL.name} was not compared: {reason}"] if reason else []
        ran = [EVAL]
    except Exception as error:  # some models take gradients in their forward (forces of an energy)
        try:
            same[EVAL.name], _ = runs.same(EVAL_WITH_GRADIENTS, look)
        except Exception:  # noqa: BLE001 - it cannot run with gradients either: show the first error
            raise error from None
        same[EVAL_WITH_GRADIENTS.name] = same[EVAL.name]
        notes = [f"{EVAL.name} was compared with gradients only: {type(error).__name__}: {error}".splitlines()[0]]
        ran = [EVAL_WITH_GRADIENTS]
    for mode in [TRAIN, *EXTRA_MODES, *(REQUIRED if runs.required is not None else ())]:
        if mode in ran:
            continue
        same[mode.name] = None
        if mode.training and TRAIN not in ran and mode is not TRAIN:
            continue
        try:
            same[mode.name], reason = runs.same(mode, look if mode.gradients else None)
            ran.append(mode)
        except Exception as error:  # noqa: BLE001 - some models lack the mode (targets, batch of one, no bfloat16)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason:
            notes.append(f"{mode.name} was not {'checked' if mode is TRAIN else 'compared'}: {reason}")
    return same, ran, notes


def _watched(runs: Runs, modes: list[Mode]) -> DenseWeights:
    """Run the model under random half masks and return the watch that recorded its operations."""
    generator = torch.Generator().manual_seed(0)
    runs.masks = {}  # whose memory is not needed any more
    half: dict[int, Tensor] = {}
    for weight in all_masked_parameters(runs.model):  # a parameter with several names has one mask
        half[id(weight.parameter)] = half.get(id(weight.parameter), _half(weight, generator))
    runs.masks = {id(w.mask): half[id(w.parameter)] for w in all_masked_parameters(runs.model)}
    watch = DenseWeights(runs.model)
    for mode in modes:
        if mode is EVAL or (mode is EVAL_WITH_GRADIENTS and EVAL not in modes):
            mode = Mode(EVAL.name, gradients=True)
        elif mode is not TRAIN and not mode.required:
            continue
        runs.run(mode, plain=False, gradients=True, watched=watch.of)
    if EVAL in modes:
        runs.run(EVAL, plain=False, gradients=True, watched=lambda copied: FusedOperations(watch.of(copied)))
    return watch


def _half(weight: MaskedWeight, generator: torch.Generator) -> Tensor:
    """Return a random mask of half the entries: exactly half for small weights, where chance might keep nearly all."""
    count = weight.mask.numel()
    if count > _LARGE:
        chance = torch.rand(weight.mask.shape, generator=generator, device="cpu", dtype=torch.float32)
        return (chance < 0.5).to(weight.mask.device)
    order = torch.randperm(count, generator=generator, device="cpu")
    return (order < (count + 1) // 2).reshape(weight.mask.shape).to(weight.mask.device)
