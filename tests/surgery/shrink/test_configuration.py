"""Configurations follow a shrink where they can build the smaller model, and are left alone where they cannot."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.surgery.shrink.report import ShrinkReport


class Config:
    """Sizes by name; heads have to divide into the key/value heads, as a reader of its file demands."""

    def __init__(self, **numbers: Any) -> None:
        self.heads, self.each, self.inner, self.layers, self.table = 4, 2, [12, 12], 2, 24
        vars(self).update(numbers)
        if self.heads % 2:
            raise ValueError("an odd number of heads")

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(vars(self))

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "Config":
        return cls(**table)


class Block(nn.Module):
    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.each = config.each
        self.q, self.out = nn.Linear(8, config.heads * config.each), nn.Linear(config.heads * config.each, 8)
        self.up, self.down = nn.Linear(8, config.inner[index]), nn.Linear(config.inner[index], 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.q(x).unflatten(-1, (-1, self.each)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(y, y, y).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(self.up(x).relu())  # type: ignore[no-any-return]


class Model(nn.Module):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.Sequential(*(Block(config, i) for i in range(config.layers)))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.blocks(x))
        return y


X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def shrunk(model: nn.Module, gone: dict[str, int], **options: Any) -> ShrinkReport:
    """Shrink a model whose layers have no outputs left but those from a number on."""
    sparsify.convert(model.eval())
    masks = sparsify.get_masks(model)
    for name, rows in gone.items():
        masks[f"{name}.weight"][:rows] = False
        if f"{name.replace('up', 'down')}.weight" in masks and "up" in name:
            masks[f"{name.replace('up', 'down')}.weight"][:, :rows] = False
        if name.endswith("q"):
            masks[f"{name[:-1]}out.weight"][:, :rows] = False
    sparsify.set_masks(model, masks)
    return sparsify.shrink(model, X, **options)


def model(**numbers: Any) -> Model:
    torch.manual_seed(0)
    return Model(Config(**numbers))


def rebuilt(small: Any) -> nn.Module:
    fresh = Model(Config.from_dict(small.config.to_dict()))
    fresh.load_state_dict(small.state_dict())
    return fresh.eval()


ALL = {"blocks.0.q": 4, "blocks.1.q": 4, "blocks.0.up": 6, "blocks.1.up": 6}


def test_numbers_of_which_all_layers_agree_follow_and_the_outputs_decide_between_heads_and_their_width() -> None:
    first = model()
    report = shrunk(first, ALL)
    small: Any = report.model
    assert (small.config.heads, small.config.each, small.config.inner) == (2, 2, [6, 6])
    assert report.configuration == "config: heads 4 -> 2, inner.0 12 -> 6, inner.1 12 -> 6"
    assert f"  {report.configuration}" in str(report).splitlines()
    torch.testing.assert_close(rebuilt(small)(X), first(X))
    assert vars(first.config) == vars(Config())  # the model that was given keeps its own


def test_numbers_of_lists_follow_one_by_one() -> None:
    report = shrunk(model(), {"blocks.1.up": 9})
    small: Any = report.model
    assert small.config.inner == [12, 3] and "config: inner.1 12 -> 3" == report.configuration
    rebuilt(small)


def test_layers_that_disagree_leave_the_configuration_and_it_is_said() -> None:
    report = shrunk(model(), {"blocks.0.q": 4, "blocks.1.q": 0, "blocks.0.up": 6})
    small: Any = report.model
    assert vars(small.config) == vars(Config()) and small.blocks[0].q.out_features == 4
    assert report.configuration == "config: no configuration builds it; its file stores the cuts"


def test_a_configuration_that_its_own_reader_refuses_is_left() -> None:
    report = shrunk(model(), {"blocks.0.q": 2, "blocks.1.q": 2})
    small: Any = report.model
    assert small.blocks[0].q.out_features == 6 and small.config.heads == 4  # three heads


def test_without_a_proof_or_a_cut_nothing_is_changed_or_said() -> None:
    assert shrunk(model(), ALL, verify=False).configuration == ""
    assert shrunk(model(), {}).configuration == ""


def test_one_within_a_model_of_ones_own_follows_too() -> None:
    whole: Any = nn.Sequential(model(), nn.Linear(3, 2))
    gone = {f"0.{name}": rows for name, rows in ALL.items()}
    report = shrunk(whole, gone)
    small: Any = report.model
    assert report.configuration.startswith("0.config: heads 4 -> 2")
    fresh = nn.Sequential(rebuilt(small[0]), small[1])
    torch.testing.assert_close(fresh(X), whole(X))


def test_the_random_states_stay() -> None:
    state = torch.get_rng_state()
    first = model()
    torch.set_rng_state(state)
    shrunk(first, ALL)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("format", ["sparse", "dense"])
def test_a_file_gives_the_configuration_back(format: str, tmp_path: Path) -> None:
    report = shrunk(model(), ALL)
    path = tmp_path / "small.safetensors"
    sparsify.save(report.model, path, format=format)
    again: Any = sparsify.load(path, model())
    assert (again.config.heads, again.config.inner) == (2, [6, 6])
    torch.testing.assert_close(again.eval()(X), report.model(X))
