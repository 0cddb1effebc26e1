"""A pruner's mutable state, and its form in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import SparsifyError
from ..processes.ranks import Group, gather
from ..processes.shards import copy_into
from ..surgery.mask_state.masks import MaskedWeight
from .criteria.gradients import zeros_like
from .criteria.step_sums import StepSums
from .mask_update import set_all
from .selection.prunable_weights import RemovedValues
from .settings.prune import Pruning

VERSION = 1


class CycleGenerator:
    """A private CPU generator that is reset to the start of the cycle at every update."""

    def __init__(self, source: torch.Generator | None, group: Group = None) -> None:
        """Seed it with one number drawn from `source`, so that resetting repeats none of its numbers; or with 0.

        In a `group` of processes all use the first one's number.
        """
        seed = 0 if source is None else int(torch.randint(2**62, (), generator=source, device=source.device))
        seed = gather(seed, group)[0]
        self.generator = torch.Generator().manual_seed(seed)
        self._start, self._cycle = self.generator.get_state(), 0

    def rewound(self, cycle: int) -> torch.Generator:
        """Return the generator in its state at the first call for `cycle` (from 1)."""
        if cycle != self._cycle:
            self._start, self._cycle = self.generator.get_state(), cycle
        self.generator.set_state(self._start)
        return self.generator

    def state(self) -> dict[str, Any]:
        """Return its entries of a pruner's state, for `load`."""
        states = {"generator": self.generator.get_state(), "cycle_generator": self._start}
        return {"cycle_drawn": self._cycle, **states}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""
        self.generator.set_state(state["generator"].cpu())
        self._start, self._cycle = state["cycle_generator"].cpu().clone(), state["cycle_drawn"]


class PrunerState:
    """The progress of a pruning.

    `done` counts the updates done, `sparsity` is the one due now, `removed_before` counts the entries that were masked
    at the start; `union` holds the union of the masks of finished cycles by weight name, `sums` the sums of criteria
    over the steps.
    """

    def __init__(self, masked_weights: str, generator: torch.Generator | None, group: Group, sums: StepSums) -> None:
        self.done, self.sparsity, self.started, self.removed_before = 0, 0.0, False, 0
        self.union: dict[str, Tensor] = {}
        self.removed_values = RemovedValues(masked_weights)
        self.random = CycleGenerator(generator, group)
        self.sums = sums

    def as_dict(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the flat dict that `load` reads, with copies of the tensors and the pruner's `own` entries."""
        before = {"removed_before": self.removed_before} if self.removed_before else {}
        return pack({**own, **self._plain(), **before}, self._tensors())

    def load(
        self, state: Mapping[str, Any], own: Mapping[str, Any], weights: Mapping[str, MaskedWeight]
    ) -> dict[str, Any]:
        """Restore a state from `as_dict`, checked against the pruner's present `own` entries; return its plain entries.

        Raises SparsifyError, with nothing changed, for other settings or another model.
        """
        shapes = {"union": {name: weight.mask for name, weight in weights.items()}}
        shapes["frozen"] = {name: weight.parameter.detach() for name, weight in weights.items()}
        shapes["sums"] = zeros_like({name: weight for name, weight in weights.items() if name in self.sums.names})
        known = {key: value for key, value in state.items() if key != "removed_before"}
        plain, groups = unpack(known, {**own, **self._plain()}, shapes)
        self.removed_before = state.get("removed_before", 0)
        self.sparsity, self.done, self.started = plain["sparsity"], plain["done"], plain["started"]
        self.random.load(plain)
        self.sums.watch(weights)
        for group, kept in self._tensors().items():
            kept.clear()
            kept.update({name: copy_into(shapes[group][name].clone(), value) for name, value in groups[group].items()})
        return plain

    def _plain(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity, "done": self.done, "started": self.started, **self.random.state()}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"union": self.union, "frozen": self.removed_values.values, "sums": self.sums.values}

    @contextmanager
    def all_or_nothing(self, weights: Mapping[str, MaskedWeight]) -> Iterator[None]:
        """Restore masks and state if the block raises, e.g. for a NaN score or an interrupt."""
        masks = {name: weight.mask.clone() for name, weight in weights.items()}
        before = self.done, self.sparsity, dict(self.union)
        drawn = self.random.state()
        try:
            yield
        except BaseException:
            set_all({name: weight.mask for name, weight in weights.items()}, masks)
            self.done, self.sparsity, self.union = before
            self.random.load(drawn)
            raise


def settings_text(pruning: Pruning, total_steps: int, steps_per_epoch: int | None, weights: Sequence[str]) -> str:
    """Return, as JSON, the settings that must be equal to continue a pruning."""
    times = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return json.dumps(pruning.model_dump(mode="json") | times | {"weights": weights})


def pack(plain: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return `plain` and the tensors of each group under "group/name", copied, as one dict."""
    tensors = {f"{group}/{name}": tensor.clone() for group, named in groups.items() for name, tensor in named.items()}
    return {"version": VERSION, **plain, **tensors}


def unpack(
    state: Mapping[str, Any], plain: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the plain values and the groups of tensors of a state from `pack`.

    `plain` and `groups` are a state of this pruner, against which it is checked: names and types of plain values, of
    which "settings" must be equal, and shapes of tensors; a whole group may be absent. Raises SparsifyError for
    anything missing, unknown, of another shape, or of other settings.
    """
    if state.get("version") != VERSION:
        raise SparsifyError(f"pruner state: version {state.get('version')!r}; this sparsify reads version {VERSION}")
    found: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for key, value in state.items():
        group, _, name = key.partition("/")
        if group in groups and name:
            expected = groups[group].get(name)
            if expected is None or not isinstance(value, Tensor) or value.shape != expected.shape:
                raise SparsifyError(f"pruner state: '{key}' fits no weight of this model")
            found[group][name] = value
        elif key != "version" and key not in plain:
            raise SparsifyError(f"pruner state: unknown entry '{key}'")
    for key, example in plain.items():
        if not isinstance(state.get(key), type(example)):
            raise SparsifyError(f"pruner state: '{key}' is missing or no {type(example).__name__}")
    for group, named in found.items():
        missing = [name for name in groups[group] if name not in named]
        if named and missing:
            raise SparsifyError(f"pruner state: '{group}/{missing[0]}' is missing")
    _same_settings(state["settings"], plain["settings"])
    return {key: state[key] for key in plain}, found


def _set(settings: Any) -> Any:
    """Return settings without those that are None, so that states from before a setting existed compare equal."""
    if not isinstance(settings, dict):
        return settings
    return {key: _set(value) for key, value in settings.items() if value is not None}


def _same_settings(saved: str, present: str) -> None:
    was, now = _set(json.loads(saved)), _set(json.loads(present))
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            raise SparsifyError(
                f"pruner state: it was saved with {key} {was.get(key)!r}, this pruner has {now.get(key)!r}"
            )
