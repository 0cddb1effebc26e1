import logging

import pytest
import torch
from torch import Tensor, fx, nn

from sparsify import SparsifyError, convert, fold, get_masks, ops, set_masks, trace
from tests.surgery.conversion.test_convert import Borrowing, X, network


def half_masks(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})


def test_fold_gives_a_plain_model_with_the_original_keys_and_the_same_outputs() -> None:
    model = Borrowing().eval()
    keys = list(model.state_dict())
    convert(model)
    half_masks(model)
    folded = fold(model)
    assert type(folded) is Borrowing and type(folded.proj) is nn.Linear
    assert list(folded.state_dict()) == keys
    assert torch.equal(folded.qkv.weight == 0, ~get_masks(model)["qkv.weight"])
    x = torch.randn(2, 3, 4)
    assert torch.equal(folded(x), model(x))
    assert get_masks(model) and not get_masks(folded)


def test_fold_stores_a_computed_weight_in_a_plain_convolution_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = network().eval()
    convert(model)
    half_masks(model)
    with caplog.at_level(logging.WARNING, logger="sparsify"):
        folded = fold(model)
    assert "3.weight" in caplog.text
    assert type(folded[3]) is nn.Conv2d  # type: ignore[index]
    assert torch.equal(folded(X), model(X))


def test_trace_shows_masked_operations_as_nodes_and_leaves_the_model_alone() -> None:
    model = network().eval()
    convert(model)
    half_masks(model)
    graph = trace(model)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert [t for t in targets if t in ops.MASKED.values()] == [
        ops.masked_conv2d,
        ops.masked_conv2d,
        ops.masked_conv_transpose2d,
        ops.masked_linear,
    ]
    assert torch.equal(graph(X), model(X))
    half_masks(model, seed=1)
    assert not torch.equal(graph(X), model(X))  # it is of a copy


def test_a_users_own_symbolic_trace_follows_later_mask_changes() -> None:
    model = nn.Sequential(network(), nn.Flatten()).eval()
    convert(model)
    traced = fx.symbolic_trace(model)
    assert ops.masked_linear in {node.target for node in traced.graph.nodes}
    for seed in range(2):
        half_masks(model, seed)
        assert torch.equal(traced(X), model(X))


class Windowed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.shape[0] % 2 else -self.layer(x)


def test_what_cannot_be_traced_becomes_one_node() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Windowed())
    convert(model)
    graph = trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["1"]
    assert torch.equal(graph(X[0, 0, :, :4]), model(X[0, 0, :, :4]))


def test_a_model_whose_own_forward_cannot_be_traced_is_an_error_that_names_the_line() -> None:
    model = Windowed()
    convert(model)
    with pytest.raises(SparsifyError, match=r"Windowed.*test_fold_and_trace.py:\d+, in forward"):
        trace(model)
    assert model(torch.ones(1, 4)).shape == (1, 4)
