"""LoopPruning: the state that a model carries, skipped steps, ends that are told, and mistakes."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.integrations import LoopPruning
from sparsify.integrations.carried_state import KEY, from_bytes, to_bytes
from sparsify.pruning.report import SparsityWarning
from sparsify.surgery.progress import ScheduleWarning

PRUNING = {"sparsity": 0.5, "scope": "filter", "schedule": "linear", "every": "1it", "end": "4it"}
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def trained(loop: LoopPruning, steps: int) -> None:
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    for _ in range(steps):
        loop.model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        loop.step()


def test_a_state_comes_back_from_its_bytes() -> None:
    state = {"a": 1, "b": 0.1 + 0.2, "c": "x", "d": True, "union/w": torch.tensor([True, False]), "n": None}
    found = from_bytes(to_bytes(state))
    assert torch.equal(found.pop("union/w"), state.pop("union/w")) and found == state


@pytest.mark.parametrize("settings", [{}, {"masked_weights": "freeze"}, {"criterion": "random"}])
def test_the_model_s_state_is_enough_to_go_on(settings: dict[str, Any]) -> None:
    whole = LoopPruning(network(), PRUNING | settings)
    whole.begin(6)
    trained(whole, 2)
    state = copy.deepcopy(whole.model.state_dict())
    trained(whole, 4)
    whole.finish()
    assert KEY in state and KEY not in whole.model.state_dict()
    after = LoopPruning(network(seed=9), PRUNING | settings)
    assert after.model.load_state_dict(state) == ([], [])
    after.begin(6)
    assert after.began().position == 2
    trained(after, 4)
    after.finish()
    assert all(torch.equal(after.model.state_dict()[key], value) for key, value in whole.model.state_dict().items())
    assert after.metrics(per_layer=True) == {"sparsity": 0.5, "sparsity/0.weight": 0.5, "sparsity/2.weight": 0.5}


def test_what_is_removed_is_zero_at_the_end_and_the_outputs_are_the_same() -> None:
    loop = LoopPruning(network(), PRUNING)
    loop.begin(6)
    trained(loop, 6)
    before = loop.model(X)
    loop.finish()
    plain = network()
    plain.load_state_dict({k: v for k, v in loop.model.state_dict().items() if not k.endswith("_mask")})
    assert torch.equal(loop.model(X), before) and torch.equal(plain(X), before)
    assert float((plain[0].weight == 0).float().mean()) == 0.5


def test_copies_carry_nothing_and_load_what_the_model_carries() -> None:
    loop = LoopPruning(network(), PRUNING)
    loop.begin(6)
    trained(loop, 2)
    for other in (copy.deepcopy(loop.model), pickle.loads(pickle.dumps(loop.model)), sparsify.fold(loop.model)):
        assert KEY not in other.state_dict()
    other = copy.deepcopy(loop.model)
    other.load_state_dict(loop.model.state_dict())
    wrapped = nn.DataParallel(loop.model)
    assert f"module.{KEY}" in wrapped.state_dict()


def test_steps_that_the_scaler_of_fp16_skips_count() -> None:
    loop = LoopPruning(network(), PRUNING)
    loop.begin(6)
    optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    scaler: Any = torch.amp.GradScaler("cpu")  # type: ignore[attr-defined]
    for step in range(6):
        before = loop.model[0].bias.detach().clone()
        scaler.scale(loop.model(X).square().mean() * (float("inf") if step == 2 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(loop.model[0].bias, before) == (step == 2)
        optimizer.zero_grad()
        loop.step()
    assert loop.metrics() == {"sparsity": 0.5} and loop.began().finished


def test_an_end_that_is_not_the_planned_one_is_told() -> None:
    loop = LoopPruning(network(), PRUNING)
    loop.begin(6)
    trained(loop, 2)
    early = copy.deepcopy(loop.model.state_dict())
    with pytest.warns(ScheduleWarning, match="cut short at step 2"):
        loop.finish()
    loop = LoopPruning(network(), PRUNING)
    loop.begin(6)
    trained(loop, 6)
    loop.model.load_state_dict(early)
    with pytest.warns(SparsityWarning, match="remove 24 entries, those of its pruning's end 48"):
        loop.finish()


def test_mistakes_are_one_line() -> None:
    with pytest.raises(SparsifyError, match="LoopPruning: model is of type dict; it takes Module"):
        LoopPruning({}, PRUNING)  # type: ignore[arg-type]
    with pytest.raises(SparsifyError, match="pruning.sparsty: unknown key; did you mean 'sparsity'"):
        LoopPruning(network(), {"sparsty": 0.5})
    loop = LoopPruning(network(), PRUNING)
    with pytest.raises(SparsifyError, match=r"call begin\(total_steps\) before the first step"):
        loop.step()
    with pytest.raises(SparsifyError, match="goes on after step 3, and no pruner's state came with the checkpoint"):
        loop.begin(6, step=3)
    loop.begin(6)
    trained(loop, 6)
    loop.finish()
    with pytest.raises(SparsifyError, match="it has ended; make a new LoopPruning"):
        loop.begin(6)
    with pytest.raises(SparsifyError, match="pruning: sparsity 0.4 is below the 0.5 that the masks remove"):
        LoopPruning(loop.model, PRUNING | {"sparsity": 0.4}).begin(6)
