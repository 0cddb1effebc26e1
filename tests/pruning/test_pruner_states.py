"""Any order of start, step, state_dict and load_state_dict leads to the masks of a training without a break."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError

STEPS = 12
SETTINGS: list[dict[str, Any]] = [
    {"sparsity": 0.5, "scope": "filter", "every": "2it", "schedule": "cubic"},
    {"sparsity": 0.75, "criterion": "random", "scope": "filter", "every": "1it", "schedule": "linear", "regrow": False},
    {
        "sparsity": 0.6,
        "scope": "filter",
        "every": "1it",
        "schedule": {"name": "cyclic", "cycles": 3},
        "after_cycles": "union",
        "masked_weights": "freeze",
    },
    {"granularity": "2:4", "scope": "layer"},
]


def pruner_of(pruning: dict[str, Any]) -> sparsify.Pruner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    sparsify.convert(model)
    return sparsify.Pruner(model, pruning, STEPS)


def masks_of(pruner: sparsify.Pruner) -> dict[str, Tensor]:
    return {name: mask.clone() for name, mask in sparsify.get_masks(pruner.model).items()}


class Orders(RuleBasedStateMachine):
    """A pruner beside the masks that one without a break had at each step."""

    @initialize(pruning=st.sampled_from(SETTINGS))
    def begin(self, pruning: dict[str, Any]) -> None:
        self.pruning = pruning
        whole = pruner_of(pruning)
        self.expected = [masks_of(whole)]  # before `start`
        whole.start()
        self.expected.append(masks_of(whole))
        for _ in range(STEPS):
            whole.step()
            self.expected.append(masks_of(whole))
        self.pruner, self.started = pruner_of(pruning), False
        self.saved: list[tuple[dict[str, Any], dict[str, Any], bool]] = []

    @rule()
    def start(self) -> None:
        self.pruner.start()
        self.started = True

    @precondition(lambda self: self.pruner.position < STEPS)
    @rule()
    def step(self) -> None:
        self.pruner.step()
        self.started = True

    @rule()
    def save(self) -> None:
        model = {name: value.clone() for name, value in self.pruner.model.state_dict().items()}
        self.saved.append((self.pruner.state_dict(), model, self.started))

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 100), fresh=st.booleans())
    def load(self, which: int, fresh: bool) -> None:
        state, model, started = self.saved[which % len(self.saved)]
        if fresh:
            self.pruner = pruner_of(self.pruning)
        self.pruner.model.load_state_dict(model)
        self.pruner.load_state_dict(state)
        self.started = started

    @precondition(lambda self: self.saved)
    @rule(drop=st.integers(0, 100))
    def load_what_is_damaged(self, drop: int) -> None:
        state = dict(self.saved[-1][0])
        required = [key for key in state if key != "removed_before"]
        del state[required[drop % len(required)]]
        before = self.pruner.state_dict()
        with pytest.raises(SparsifyError) as caught:
            self.pruner.load_state_dict(state)
        assert "\n" not in str(caught.value)
        after = self.pruner.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(after[k])) for k, v in before.items() if k[0] != "s")

    @invariant()
    def masks_are_those_of_a_training_without_a_break(self) -> None:
        if hasattr(self, "pruner"):
            expected = self.expected[self.pruner.position + 1 if self.started else 0]
            found = masks_of(self.pruner)
            assert all(torch.equal(found[name], mask) for name, mask in expected.items())

    @invariant()
    def the_report_and_the_state_agree(self) -> None:
        if hasattr(self, "pruner") and self.pruner.finished:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                report = self.pruner.report()
            assert report.removed == sum(int((~mask).sum()) for mask in masks_of(self.pruner).values())


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
