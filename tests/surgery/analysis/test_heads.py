"""Sizes of attention heads: tied over all heads, worked out by hand, and taken out of models with proof."""

from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import set_fused_attn, use_fused_attn
from torch import Tensor, nn

from sparsify import SparsifyError
from sparsify.surgery.channels.analyse import Channels, analyse
from sparsify.surgery.shrink.shrink import ShrinkReport, shrink
from tests.surgery.halves import zero_half


class Attention(nn.Module):
    """Two heads with queries and keys of size 3, values of size 2, each with a layer of its own."""

    def __init__(self, *, fused: bool = False, scale: float | None = 0.5) -> None:
        super().__init__()
        self.fused, self.scale = fused, scale
        self.q, self.k, self.v = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 4)
        self.proj = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            y = (q @ k.transpose(2, 3) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


TOKENS = torch.randn(2, 4, 5)


def letters(found: Channels, name: str, dim: int) -> str:
    return "".join("-" if n < 0 else chr(97 + n) for n in found.labels.get(name, {}).get(dim, torch.empty(0)).tolist())


@pytest.mark.parametrize("fused", [False, True])
def test_sizes_of_queries_and_keys_go_together_and_those_of_values_by_themselves(fused: bool) -> None:
    found = analyse(Attention(fused=fused), TOKENS, heads="size")
    assert [letters(found, f"{name}.weight", 0) for name in "qkv"] == ["abcabc", "abcabc", "dede"]
    assert [letters(found, f"{name}.bias", 0) for name in "qkv"] == ["abcabc", "abcabc", "dede"]
    assert letters(found, "proj.weight", 1) == "dede"
    assert found.groups == 5 and not found.barriers and not found.dead.any()


@pytest.mark.parametrize("fused", [False, True])
def test_heads_go_whole_unless_sizes_are_asked_for(fused: bool) -> None:
    found = analyse(Attention(fused=fused), TOKENS)
    assert [letters(found, f"{name}.weight", 0) for name in "qkv"] == ["aaabbb", "aaabbb", "aabb"]
    assert letters(found, "proj.weight", 1) == "aabb"


def test_sizes_that_attention_divides_by_stay_and_it_is_said() -> None:
    found = analyse(Attention(fused=True, scale=None), TOKENS, heads="size")
    assert [letters(found, f"{name}.weight", 0) for name in "qkv"] == ["", "", "abab"]
    assert found.barriers == ("the model: attention divides by the root of the size of its heads, so that it stays",)


@pytest.mark.parametrize("fused", [False, True])
def test_operations_cost_what_is_left_of_each_size(fused: bool) -> None:
    """Two samples, two heads, four tokens: 2 * 2 * 4 * 4 rows of 3 entries for queries with keys, of 2 for values."""
    found = analyse(Attention(fused=fused), TOKENS, heads="size")
    costs = {operation.multiply_adds: len(operation.axes[-1]) for operation in found.operations if not operation.name}
    assert costs == {64 * 3: 3, 64 * 2: 2}


@pytest.mark.parametrize("fused", [False, True])
def test_a_size_that_is_zero_in_all_heads_goes(fused: bool) -> None:
    model = Attention(fused=fused)
    with torch.no_grad():
        for layer in (model.q, model.k):
            for row in (1, 4):
                layer.weight[row], layer.bias[row] = 0, 0
        model.v.weight[0], model.v.bias[0] = 0, 0  # of one head only
    report = shrink(model, TOKENS, heads="size", dead="zeros")
    assert report.removed == 1
    small = report.model
    assert [tuple(getattr(small, name).weight.shape) for name in "qkv"] == [(4, 5), (4, 5), (4, 5)]
    other = torch.randn(3, 7, 5)
    torch.testing.assert_close(small(other), model(other))
    assert shrink(model, TOKENS, dead="zeros").removed == 0


def test_another_word_is_refused() -> None:
    for function in (analyse, shrink):
        with pytest.raises(SparsifyError, match=f"{function.__name__}: unknown heads 'sizes'; did you mean 'size'"):
            function(Attention(), TOKENS, heads="sizes")  # type: ignore[operator]


@pytest.fixture
def plain_attention() -> Iterator[None]:
    """Has timm compute attention by products; with its fused operation, sizes of heads stay."""
    before = use_fused_attn()
    set_fused_attn(False)
    yield
    set_fused_attn(bool(before))


def half_shrunk(model: nn.Module) -> tuple[Channels, ShrinkReport]:
    """Make half of a model's groups zero and shrink it."""
    x = torch.randn(1, 3, 224, 224)
    found = analyse(model, x, heads="size")
    zero_half(model, found)
    return found, shrink(model, x, heads="size", dead="zeros")


@pytest.mark.slow
def test_a_vision_transformer_gets_smaller_heads(plain_attention: None) -> None:
    torch.manual_seed(0)
    found, report = half_shrunk(timm.create_model("vit_tiny_patch16_224").eval())
    assert not report.kept and report.parameters[1] < 0.6 * report.parameters[0]
    for block in report.model.blocks:  # type: ignore[union-attr]
        attention = block.attn
        assert attention.num_heads == 3 and 0 < attention.head_dim < 64
        assert attention.qkv.weight.shape[0] == 9 * attention.head_dim
        assert attention.proj.in_features == 3 * attention.head_dim
    assert found.labels["blocks.0.attn.qkv.weight"][0].unique().numel() == 64


@pytest.mark.slow
def test_a_swin_transformer_gets_smaller_heads(plain_attention: None) -> None:
    torch.manual_seed(0)
    found, report = half_shrunk(timm.create_model("swin_tiny_patch4_window7_224").eval())
    assert not report.kept and report.parameters[1] < 0.6 * report.parameters[0]
    assert found.labels["layers.1.blocks.1.attn.qkv.weight"][0].unique().numel() == 32


@pytest.mark.slow
def test_keys_and_values_of_levit_have_sizes_of_their_own(plain_attention: None) -> None:
    torch.manual_seed(0)
    found, report = half_shrunk(timm.create_model("levit_128s").eval())
    assert not report.kept and report.parameters[1] < 0.4 * report.parameters[0]
    attention = report.model.stages[0].blocks[0].attn  # type: ignore[union-attr,index]
    assert found.labels["stages.0.blocks.0.attn.qkv.linear.weight"][0].unique().numel() == 16 + 32
    width = attention.num_heads * (2 * attention.key_dim + attention.val_dim)
    assert attention.qkv.linear.weight.shape[0] == width < 256


@pytest.mark.slow
def test_a_forward_that_takes_the_size_from_its_input_keeps_it() -> None:
    """Torchvision's Swin divides the width of its input by the number of heads."""
    torch.manual_seed(0)
    _, report = half_shrunk(torchvision.models.swin_t().eval())
    assert len(report.kept) >= 10 and all(".attn: " in reason or "features" in reason for reason in report.kept)
    assert report.parameters[1] < 0.75 * report.parameters[0]


def test_what_multihead_attention_compares_with_its_width_is_no_unit() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y: Tensor = self.last(self.attention(x, x, x, need_weights=False)[0])
            return y

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 5, 6)
    found = analyse(model, x)
    assert found.groups == 8 and "first.weight" not in found.labels
    with torch.no_grad():
        model.attention.out_proj.weight[:3], model.attention.out_proj.bias[:3] = 0, 0
    report = shrink(model, x, dead="zeros")
    assert report.model.attention.out_proj.out_features == 5 and report.kept == ()
