"""What a caller has switched on, or set as a default, does not change what an analysis finds."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify import Pruner, convert, shrink
from sparsify.errors import SparsifyError
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.mask_state.masks import all_masked_parameters


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "a device": lambda: torch.device("meta"),
    "a default device": lambda: default_device("meta"),
    "half precision": lambda: default_dtype(torch.float16),
    "double precision": lambda: default_dtype(torch.float64),
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.last = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, 2)).transpose(-2, -3) for part in self.qkv(x).chunk(3, -1))
        heads = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.last(self.out(heads.transpose(-2, -3).flatten(-2)).relu())  # type: ignore[no-any-return]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Attention())


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_same_units_are_found_and_removed(name: str) -> None:
    whole, x = model(), torch.randn(2, 5, 3)
    expected = analyse(whole, x)
    with SURROUNDINGS[name]():
        found = analyse(whole, x)
    assert found.groups == expected.groups and found.barriers == expected.barriers == ()
    assert all(
        torch.equal(found.labels[n][d], labels) for n, dims in expected.labels.items() for d, labels in dims.items()
    )
    convert(whole, ignore=["last"])
    Pruner(whole, {"granularity": "unit", "sparsity": 0.5, "scope": "layer"}, 0, example_input=x).start()
    with SURROUNDINGS[name]():
        report = shrink(whole, x)
    assert report.removed == expected.groups // 2 and report.kept == ()
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in report.model.parameters())
    torch.testing.assert_close(report.model(x), whole(x))
    report.model(x).sum().backward()


PER_COST = {"criterion": {"name": "magnitude", "per": "flops"}, "of": "flops", "scope": "global"}


@pytest.mark.parametrize("settings", [{"scope": "layer"}, PER_COST], ids=["layer", "cost"])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_same_units_are_pruned(name: str, settings: dict[str, Any]) -> None:
    whole, expected, x = model(), model(), torch.randn(2, 5, 3)
    pruning = {"granularity": "unit", "sparsity": 0.5, **settings}
    convert(expected, ignore=["last"])
    Pruner(expected, pruning, 0, example_input=x).start()
    with SURROUNDINGS[name]():
        convert(whole, ignore=["last"])
        Pruner(whole, pruning, 0, example_input=x).start()
    assert shrink(expected, x).removed > 0
    masks = {weight.name: weight.mask for weight in all_masked_parameters(whole)}
    assert all(torch.equal(masks[weight.name], weight.mask) for weight in all_masked_parameters(expected))


def test_tensors_without_values_or_made_in_inference_mode_are_refused_in_one_line() -> None:
    with pytest.raises(SparsifyError, match=r"^0\.weight is on the meta device: an analysis of channels reads"):
        analyse(model().to("meta"), torch.randn(2, 5, 3))
    with torch.inference_mode():
        made = model()
    with pytest.raises(SparsifyError, match=r"^0\.weight was made in inference mode, in which no"):
        analyse(made, torch.randn(2, 5, 3))
