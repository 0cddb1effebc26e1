"""Attributes that hold a number of channels by chance stay, those that sizes come from follow, wherever they are."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify


class Block(nn.Module):
    """Rows for embedded positions and a view of `width` numbers, kept as `Holder` says; all numbers are 8 or 4."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(6, 8), nn.Linear(8, 6)
        self.table = nn.Embedding(8, 6)
        self.step = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


class Model(nn.Module):
    """Two blocks, of which the second has another number of channels left."""

    def __init__(self, make: Callable[[], Block]) -> None:
        super().__init__()
        self.a, self.b, self.last = make(), make(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.b(self.a(x)))
        return y


def positions(block: Any, x: Tensor, most: int) -> Tensor:
    """Return rows of a table for positions of which the last are clamped: they change if `most` does."""
    rows: Tensor = block.table((torch.arange(x.shape[1]) * 3).clamp(max=most - 1))
    return rows


def plain(block: Any, x: Tensor) -> Tensor:
    y = block.q(x).view(len(x), x.shape[1], block.width)
    return block.o(y.relu()) + positions(block, x, block.buckets)  # type: ignore[no-any-return]


def two_of_them(block: Any, x: Tensor) -> Tensor:
    y = block.q(x).view(len(x), x.shape[1], block.width) * (1.0 / block.scale)
    y = block.o(y.relu()) + positions(block, x, block.buckets)
    return y * x.new_ones(len(x), block.length, 6)[:, : x.shape[1]].mean()


def in_a_tuple(block: Any, x: Tensor) -> Tensor:
    y = block.q(x).view(len(x), x.shape[1], block.sizes[1])
    return block.o(y.relu()) + positions(block, x, block.sizes[0])  # type: ignore[no-any-return]


def in_a_dict(block: Any, x: Tensor) -> Tensor:
    y = block.q(x).reshape(len(x), -1, block.sizes["inner"]["width"])
    return block.o(y.relu()) + positions(block, x, block.sizes["buckets"])  # type: ignore[no-any-return]


def in_a_configuration(block: Any, x: Tensor) -> Tensor:
    y = block.q(x).unflatten(-1, (1, block.config.width)).flatten(-2)
    return block.o(y.relu()) + positions(block, x, block.config.buckets)  # type: ignore[no-any-return]


def by_arithmetic(block: Any, x: Tensor) -> Tensor:
    """Four heads of two: `heads` is the source, `each` stays, what they make together is nobody's."""
    y = block.q(x).view(len(x), -1, block.heads, block.each).transpose(1, 2)
    y = nn.functional.scaled_dot_product_attention(y, y, y).transpose(1, 2)
    y = y.reshape(len(x), -1, block.heads * block.each)
    return block.o(y) + positions(block, x, block.buckets)  # type: ignore[no-any-return]


def by_a_split(block: Any, x: Tensor) -> Tensor:
    first, second = block.q(x).split([block.left, block.right], -1)
    y = torch.cat([first.relu(), second.tanh()], -1)
    return block.o(y) + positions(block, x, 2 * block.most)  # type: ignore[no-any-return]


def beyond_the_example(block: Any, x: Tensor) -> Tensor:
    """The rest of a division shows from the fifth position on that `buckets` is not a number of channels."""
    y = block.q(x).view(len(x), x.shape[1], block.width)
    rows = block.table(torch.arange(x.shape[1]) % block.buckets)
    return block.o(y.relu()) + rows + x.new_ones(1, block.buckets).mean()  # type: ignore[no-any-return]


def two_at_once(block: Any, x: Tensor) -> Tensor:
    """To spare one of both alone does not help."""
    y = block.q(x).view(len(x), x.shape[1], block.width)
    rows = block.table(torch.arange(x.shape[1]) * 2 % block.sizes["n"])
    return block.o(y.relu()) + rows * block.sizes["k"][0]  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], set[str]]] = {
    "plain": (plain, {"buckets": 8, "width": 8}, {"width"}),
    "several": (two_of_them, {"buckets": 8, "width": 8, "scale": 8, "length": 8}, {"width"}),
    "tuple": (in_a_tuple, {"sizes": (8, 8)}, {"sizes.1"}),
    "dict": (in_a_dict, {"sizes": {"buckets": 8, "inner": {"width": 8}}}, {"sizes.inner.width"}),
    "configuration": (in_a_configuration, {"config": SimpleNamespace(buckets=8, width=8)}, {"config.width"}),
    "arithmetic": (by_arithmetic, {"heads": 4, "each": 2, "buckets": 4, "unused": 4}, {"heads"}),
    "beyond": (beyond_the_example, {"buckets": 8, "width": 8}, {"width"}),
    "two": (two_at_once, {"sizes": {"n": 8, "k": [8, 3]}, "width": 8}, {"width"}),
    "split": (by_a_split, {"left": 4, "right": 4, "most": 4}, {"left", "right"}),
}


@pytest.mark.parametrize("name", CASES)
def test_sources_of_sizes_are_told_from_numbers_that_are_equal_by_chance(name: str) -> None:
    forward, attributes, expected = CASES[name]
    torch.manual_seed(0)
    shared = name == "configuration"
    model = Model(lambda: Block(forward, **attributes)).double().eval()
    x = torch.randn(2, 5, 6).double()
    sparsify.convert(model, ignore=["last"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, 1, example_input=x).start()
    report = sparsify.shrink(model, x)
    assert report.kept == ()
    own = {path for path in report.cuts.attributes if not path.endswith(("_features", "embedding_dim"))}
    assert own == {f"a.{one}" for one in expected} | {f"b.{one}" for one in expected if not shared}
    other = torch.randn(3, 4, 6).double()
    torch.testing.assert_close(report.model(other), model(other), rtol=1e-10, atol=1e-12)


def test_numbers_are_plain_again_afterwards() -> None:
    model = Model(lambda: Block(plain, buckets=8, width=8)).eval()
    sparsify.shrink(model, torch.randn(2, 5, 6), dead="zeros")
    assert [type(vars(block)[name]) for block in (model.a, model.b) for name in ("width", "buckets")] == [int] * 4


def test_a_configuration_that_would_have_to_hold_two_numbers_keeps_the_channels() -> None:
    torch.manual_seed(0)
    config = SimpleNamespace(buckets=8, width=8)
    model, x = Model(lambda: Block(in_a_configuration, config=config)).double().eval(), torch.randn(2, 5, 6).double()
    with torch.no_grad():
        for layer, dead in ((model.a.q, 2), (model.b.q, 3)):
            layer.weight[:dead], layer.bias[:dead] = 0, 0
    report = sparsify.shrink(model, x, dead="zeros")
    small: Any = report.model
    assert report.kept and all(line.split(":")[0] in ("a", "b", "the model") for line in report.kept)
    assert config.width == 8 and small.a.config.width == small.a.q.out_features == small.b.q.out_features
    torch.testing.assert_close(small(x), model(x))
