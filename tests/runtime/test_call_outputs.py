from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sparsify
from sparsify.runtime.call_outputs import flatten_outputs


class Layer:
    def __init__(self, keys: Tensor) -> None:
        self.keys, self.seen, self.dtype = keys, keys.shape[0], keys.dtype


class Cache:
    def __init__(self, layers: list[Layer]) -> None:
        self.layers, self.kind = layers, Layer


@dataclass
class Answer:
    scores: Tensor
    cache: Cache


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        keys = self.first(x).relu()
        return {"answer": Answer(self.last(keys), Cache([Layer(keys), Layer(x + 1)]))}


def test_output_comes_apart_and_together_again() -> None:
    given: dict[str, Any] = {
        "a": (torch.ones(2), 3),
        "b": Cache([Layer(torch.zeros(4))]),
        "c": torch.float64,
        "d": None,
    }
    leaves, outline = flatten_outputs(given)
    assert [leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves] == [(2,), 3, (4,), 4]
    again = outline.filled([torch.full((2,), 7.0), 5, torch.full((4,), 8.0), 6])
    assert again["a"][0].tolist() == [7, 7] and again["a"][1] == 5 and again["c"] == torch.float64
    (layer,) = again["b"].layers
    assert type(layer) is Layer and layer.keys.tolist() == [8] * 4 and layer.seen == 6 and again["b"].kind is Layer
    assert again["b"] is not given["b"] and given["b"].layers[0].seen == 4


def test_engine_returns_objects_of_the_models_own() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    engine = sparsify.compile(model, torch.randn(2, 8), threads=1)
    (strategy,) = engine.strategies.values()
    for _ in range(2):
        x = torch.randn(2, 8)
        with torch.no_grad():
            expected = model(x)["answer"]
        found = engine(x)["answer"]
        assert type(found) is Answer and type(found.cache) is Cache
        torch.testing.assert_close(found.scores, expected.scores)
        for one, other in zip(found.cache.layers, expected.cache.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys)
    assert strategy.seconds  # kernels were tried: nothing was left to PyTorch for its output
