"""A model that is cut during training: the optimiser and averaged copies go on as the masked model's would."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import sparsify
from sparsify.errors import SparsifyError
from sparsify.surgery.mask_state.masks import set_masks
from sparsify.surgery.shrink.cuts import Cuts, apply_cuts, cuts_of
from sparsify.surgery.shrink.optimizer_state import cut_optimizer, cut_state
from tests.surgery.cut_models import OWN, dead, own, tokens

CUTS = Cuts(
    {
        "0.weight": {0: (1, 4)},
        "0.bias": {0: (1, 4)},
        "2.weight": {0: (1, 4)},
        "2.bias": {0: (1, 4)},
        "2.running_mean": {0: (1, 4)},
        "2.running_var": {0: (1, 4)},
        "3.weight": {1: (1, 4)},
    },
    {"0.out_channels": 4, "2.num_features": 4, "3.in_channels": 4},
)
INPUTS = 20 * torch.linspace(-1, 1, 8 * 2 * 5 * 5, dtype=torch.float64).mul(50).cos().view(8, 2, 5, 5)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    # A bias right before the norm would have no gradient but rounding.
    layers = [nn.Conv2d(2, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 4)).double()


def masked(seed: int = 0) -> nn.Module:
    """Return a network whose units 1 and 4 are masked, and what of them has no mask zero."""
    model = dead(network(seed), CUTS)
    sparsify.convert(model)
    mask = torch.ones(6, 2, 3, 3, dtype=torch.bool)
    mask[[1, 4]] = False
    set_masks(model, {"0.weight": mask})
    return model


def step(model: nn.Module, optimizer: Any) -> float:
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(INPUTS), torch.arange(8) % 4)
    loss.backward()
    for name, axes in CUTS.removed.items():
        parameter = dict(model.named_parameters()).get(name)
        if parameter is not None and len(parameter) == 6 and 0 in axes:
            parameter.grad[list(axes[0])] = 0  # frozen: nothing but the decay moves them
    optimizer.step()
    return float(loss.detach())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "sgd without momentum": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01),
    "adam amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.001, momentum=0.9, centered=True),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.01),
    "lamb": lambda groups: timm.optim.create_optimizer_v2(groups, opt="lamb", lr=0.01),
    "lion": lambda groups: timm.optim.create_optimizer_v2(groups, opt="lion", lr=0.001),
    "madgrad": lambda groups: timm.optim.create_optimizer_v2(groups, opt="madgrad", lr=0.001),
    "lookahead": lambda groups: timm.optim.create_optimizer_v2(groups, opt="lookahead_adamw", lr=0.01),
}


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Biases and norms in a group of their own, the norms' decay a large one."""
    flat = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    rest = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    return [{"params": rest, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.1, "lr": 0.02}]


def assert_as_masked(cut: nn.Module, model: nn.Module) -> None:
    expected = cut_state({name: value for name, value in model.state_dict().items() if "_mask" not in name}, CUTS)
    found = {name: value for name, value in cut.state_dict().items() if "_mask" not in name}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == expected[name].shape
        assert (value - expected[name]).abs().max() <= 1e-11 * expected[name].abs().max(), name


def trained(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a masked model after some steps; the same whenever it is called."""
    model = masked()
    if name == "lamb":  # it takes the norms of whole weights, these columns among them
        model[3].weight.data[:, [1, 4]] = 0
    optimizer = OPTIMIZERS[name](groups_of(model))
    for _ in range(4):
        step(model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_the_masked_model(name: str) -> None:
    (model, optimizer), (twin, followed) = trained(name), trained(name)
    cut = apply_cuts(sparsify.fold(model), CUTS)
    groups, options = optimizer.param_groups, [{**group, "params": 0} for group in optimizer.param_groups]
    cut_optimizer(optimizer, model, cut, CUTS)
    assert optimizer.param_groups is groups
    assert [{**group, "params": 0} for group in groups] == options
    shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]
    assert shapes == [[tuple(p.shape) for p in group["params"]] for group in groups_of(cut)]
    for _ in range(5):
        assert step(cut, optimizer) == pytest.approx(step(twin, followed), rel=1e-12)
        assert_as_masked(cut, twin)
    assert (cut[2].weight.detach() - apply_cuts(sparsify.fold(model), CUTS)[2].weight).abs().min() > 0
    optimizer.load_state_dict(optimizer.state_dict())
    step(cut, optimizer)


def test_the_cut_model_may_carry_masks_again_and_the_decay_goes_on() -> None:
    model = masked()
    optimizer = OPTIMIZERS["sgd"](groups_of(model))
    step(model, optimizer)
    twin, followed = copy.deepcopy((model, optimizer))
    cut = apply_cuts(sparsify.fold(model), CUTS)
    sparsify.convert(cut)
    cut_optimizer(optimizer, model, cut, CUTS)
    step(cut, optimizer), step(twin, followed)
    assert_as_masked(cut, twin)
    with torch.no_grad():
        before = cut[2].weight.clone()
        for parameter in cut.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.param_groups[1]["momentum"] = 0
        optimizer.step()
    assert torch.allclose(cut[2].weight, before * (1 - 0.02 * 0.1), rtol=1e-12)


def test_a_model_cut_in_place_is_followed_by_its_parameters_of_before() -> None:
    model = dead(network(), CUTS)
    optimizer = OPTIMIZERS["adamw"](groups_of(model))
    step(model, optimizer)
    twin, followed = copy.deepcopy((model, optimizer))
    before = dict(model.named_parameters())
    apply_cuts(model, CUTS)
    with pytest.raises(SparsifyError, match="0.weight should be 2x2x3x3 in the cut model, cut from 4x2x3x3"):
        cut_optimizer(optimizer, model, model, Cuts({"0.weight": {0: (1, 2)}}))
    cut_optimizer(optimizer, before, model, CUTS)
    step(model, optimizer), step(twin, followed)
    assert_as_masked(model, twin)


@pytest.mark.parametrize("altogether", [False, True])
def test_the_optimiser_follows_a_second_cut(altogether: bool) -> None:
    # The units 1 and 4 go one after the other: when 1 is gone, 4 is the third.
    first, second = (
        Cuts({name: {d: indices for d in axes} for name, axes in CUTS.removed.items()}) for indices in ((1,), (3,))
    )
    model = masked()
    optimizer = OPTIMIZERS["sgd"](groups_of(model))
    step(model, optimizer)
    once = apply_cuts(sparsify.fold(model), first)
    cut_optimizer(optimizer, model, once, first)
    twice = apply_cuts(copy.deepcopy(once), second)
    cut_optimizer(optimizer, once, twice, cuts_of(twice) if altogether else second)
    twin = masked()
    followed = OPTIMIZERS["sgd"](groups_of(twin))
    step(twin, followed)
    for _ in range(2):
        step(twice, optimizer), step(twin, followed)
        assert_as_masked(twice, twin)


def test_accelerates_optimiser_and_scheduler_stay_and_go_on() -> None:
    def train() -> tuple[nn.Module, Any, Any, Any]:
        model = masked()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(inner, step_size=2, gamma=0.5)
        prepared = accelerator.prepare(model, inner, scheduler)
        for _ in range(3):
            step(model, prepared[1])
            prepared[2].step()
        return model, inner, prepared[1], prepared[2]

    accelerator = Accelerator(cpu=True)
    model, inner, optimizer, scheduler = train()
    twin, _, followed, schedule = train()
    cut = apply_cuts(sparsify.fold(model), CUTS)
    cut_optimizer(optimizer, model, cut, CUTS)
    assert optimizer.optimizer is inner and scheduler.optimizers[0] is optimizer
    for _ in range(3):
        step(cut, optimizer), scheduler.step()
        step(twin, followed), schedule.step()
        assert scheduler.get_last_lr() == schedule.get_last_lr()
        assert_as_masked(cut, twin)
    assert scheduler.get_last_lr() == [0.01 * 0.5**3]


def test_parameters_of_other_models_stay() -> None:
    model, other = dead(network(), CUTS), network(1)
    optimizer = torch.optim.Adam([{"params": [*other.parameters(), *model.parameters()]}])
    step(model, optimizer), step(other, optimizer)
    states = {id(parameter): optimizer.state[parameter] for parameter in other.parameters()}
    cut_optimizer(optimizer, model, apply_cuts(copy.deepcopy(model), CUTS), CUTS)
    held = optimizer.param_groups[0]["params"]
    assert all(mine is theirs for mine, theirs in zip(held[:8], other.parameters(), strict=True))
    assert all(optimizer.state[parameter] is states[id(parameter)] for parameter in other.parameters())
    assert len(optimizer.state) == 16 and {id(key) for key in optimizer.state} == set(map(id, held))


def test_state_of_every_kind_is_cut_or_kept_or_refused() -> None:
    model = nn.Linear(4, 3, bias=False)
    cuts = Cuts({"weight": {0: (1,), 1: (0, 3)}})
    optimizer = torch.optim.SGD(model.parameters())
    values = torch.arange(12.0).view(3, 4)
    optimizer.state[model.weight] = {"a": values, "b": [values + 1, 5], "step": torch.tensor(3.0), "c": None, "d": 2.5}
    cut = apply_cuts(copy.deepcopy(model), cuts)
    cut_optimizer(optimizer, model, cut, cuts)
    state = optimizer.state[cut.weight]
    assert state["a"].tolist() == [[1, 2], [9, 10]]
    assert state["b"][0].tolist() == [[2, 3], [10, 11]] and state["b"][1] == 5
    assert (float(state["step"]), state["c"], state["d"]) == (3.0, None, 2.5)


@pytest.mark.parametrize("name", ["adafactor", "adafactorbv", "torch"])
def test_factored_state_of_a_cut_parameter_is_refused_and_nothing_changes(name: str) -> None:
    model = nn.Linear(40, 30)
    make = torch.optim.Adafactor if name == "torch" else timm.optim.get_optimizer_class(name)
    optimizer: Any = make(model.parameters(), lr=0.01)
    model(torch.ones(2, 40)).sum().backward()
    optimizer.step()
    cuts = Cuts({"weight": {1: (2,)}})
    held, state = [[*group["params"]] for group in optimizer.param_groups], dict(optimizer.state)
    with pytest.raises(SparsifyError, match="only state of the parameter's shape can be cut; make a new optimiser"):
        cut_optimizer(optimizer, model, apply_cuts(copy.deepcopy(model), cuts), cuts)
    assert all(
        a is b
        for one, group in zip(held, optimizer.param_groups, strict=True)
        for a, b in zip(one, group["params"], strict=True)
    )
    assert dict(optimizer.state) == state


def test_factored_state_of_parameters_that_are_not_cut_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    optimizer: Any = torch.optim.Adafactor(model.parameters())
    model(torch.ones(1, 4).double()).sum().backward()
    optimizer.step()
    cuts, state = Cuts({"1.bias": {0: (1,)}}), optimizer.state[model[0].weight]
    cut = apply_cuts(copy.deepcopy(model), cuts)
    cut_optimizer(optimizer, model, cut, cuts)
    assert optimizer.state[cut[0].weight] is state and optimizer.state[cut[1].bias]["variance"].shape == (1,)


def test_lbfgs_is_refused() -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(SparsifyError, match="LBFGS keeps one history"):
        cut_optimizer(optimizer, model, copy.deepcopy(model), Cuts({}))


def test_models_that_do_not_belong_together_are_refused() -> None:
    model, cut = network(), apply_cuts(network(), CUTS)
    optimizer = torch.optim.SGD(network(1).parameters())
    with pytest.raises(SparsifyError, match="holds no parameter of the model that was cut"):
        cut_optimizer(optimizer, model, cut, CUTS)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(
        SparsifyError, match="0.weight should be 4x2x3x3 in the cut model, cut from 6x2x3x3, but it is 6x"
    ):
        cut_optimizer(optimizer, model, network(), CUTS)
    with pytest.raises(SparsifyError, match="5.weight should be 4x3 in the cut model, cut from 4x3, but it is missing"):
        cut_optimizer(optimizer, model, cut[:4], CUTS)


def test_an_added_bias_is_trained_with_the_biases_nearby() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)), nn.Linear(3, 2), nn.Linear(2, 2, bias=False)
    )
    model[2].weight.requires_grad_(False)
    named = dict(model.named_parameters())
    groups = [
        {"params": [("1.bias", named["1.bias"])], "lr": 0.3},
        {"params": [("0.1.weight", named["0.1.weight"]), ("0.1.bias", named["0.1.bias"])], "lr": 0.2},
        {"params": [("0.0.weight", named["0.0.weight"]), ("1.weight", named["1.weight"])]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    cuts = Cuts({}, {}, ("0.0.bias", "2.bias"))
    cut = apply_cuts(copy.deepcopy(model), cuts)
    cut_optimizer(optimizer, model, cut, cuts)
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["1.bias"],
        ["0.1.weight", "0.1.bias", "0.0.bias"],
        ["0.0.weight", "1.weight"],
    ]
    assert optimizer.param_groups[1]["params"][2] is cut[0][0].bias
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("average", [ModelEmaV3, AveragedModel, nn.DataParallel, lambda model: model])
def test_an_averaged_copy_of_the_masked_model_is_cut(average: Callable[[nn.Module], nn.Module]) -> None:
    model = masked()
    wrapped = average(model)
    state = wrapped.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    result = cut_state(state, CUTS)
    assert list(result) == list(state)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    cut = apply_cuts(sparsify.fold(model), CUTS)
    sparsify.convert(cut)
    prefix = next(iter(result)).removesuffix("0.weight").removesuffix("n_averaged")
    bare = {key.removeprefix("module."): value for key, value in result.items() if key != "n_averaged"}
    assert prefix in ("module.", "")
    cut.load_state_dict(bare, strict=True)
    assert_as_masked(cut, model)
    assert cut[0].weight_mask.shape == (4, 2, 3, 3) and cut[0].weight_mask.all()


def test_a_state_keeps_its_ties_and_what_is_not_cut() -> None:
    model = own()
    cuts = Cuts({**OWN.removed, "out.weight": {0: (3,)}}, OWN.attributes)
    state = model.state_dict()
    result = cut_state(state, cuts)
    assert result["out.weight"] is result["embedding.weight"] and len(result["out.weight"]) == 10
    assert result["second.bias"] is state["second.bias"]
    assert result._metadata == state._metadata  # type: ignore[attr-defined]
    again = apply_cuts(own(1), cuts)
    again.load_state_dict(result, strict=True)
    assert again(tokens() % 3).shape == (20, 10)
    assert torch.equal(again.embedding.weight, result["embedding.weight"])


def test_a_state_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SparsifyError, match="cut_state: the state has none of the tensors that were cut"):
        cut_state(network().state_dict(), OWN)
    with pytest.raises(SparsifyError, match=r"cut_state: 0.weight \(4x2x3x3\) has no index 4"):
        cut_state(apply_cuts(network(), CUTS).state_dict(), CUTS)
    with pytest.raises(SparsifyError, match="the cut added 0.bias, whose values hold only for the model that was cut"):
        cut_state(network().state_dict(), Cuts({}, {}, ("0.bias",)))
    strange: dict[str, Any] = {"0.weight": torch.zeros(6, 2, 3, 3), "_extra_state": "text"}
    found: dict[str, Tensor] = cut_state(strange, CUTS)
    assert found["0.weight"].shape == (4, 2, 3, 3) and found["_extra_state"] == "text"
