from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import sparsify


class Cache:
    def __init__(self) -> None:
        self.layers: list[Tensor] = []


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keys, self.hidden, self.last = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, cached: bool = True) -> tuple[Tensor, Cache]:
        cache, keys = Cache(), self.keys(x)
        if cached:
            cache.layers.append(keys)
        return self.last(self.hidden(keys.relu()).relu()), cache


def test_channels_that_a_cache_holds_stay_and_the_reason_is_told() -> None:
    channels = sparsify.analyse(Net(), torch.randn(3, 4))
    assert channels.groups == 8
    assert channels.barriers == (
        "an object in the outputs holds them, as a cache of keys and values (of use_cache=True) does: keys.weight stay",
    )


def test_without_the_cache_they_can_go() -> None:
    channels = sparsify.analyse(Net(), (torch.randn(3, 4), False))
    assert (channels.groups, channels.barriers) == (14, ())


@dataclass
class Output:
    logits: Tensor
    more: dict[str, Tensor]


@dataclass(slots=True)
class Slotted:
    logits: Tensor
    more: dict[str, Tensor]


@dataclass
class Circular:
    logits: Tensor
    more: dict[str, Tensor]
    itself: Circular | None = None

    def __post_init__(self) -> None:
        self.itself = self


class Answering(nn.Module):
    def __init__(self, kind: Callable[[Tensor, dict[str, Tensor]], object]) -> None:
        super().__init__()
        self.kind = kind
        self.hidden, self.last, self.other = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> object:
        x = self.hidden(x).relu()
        return self.kind(self.last(x), {"other": self.other(x)})


@pytest.mark.parametrize("kind", [Output, Slotted, Circular])
def test_a_dataclass_is_a_container_of_outputs_like_others(kind: Callable[..., object]) -> None:
    channels = sparsify.analyse(Answering(kind), torch.randn(3, 4))
    assert (channels.groups, channels.barriers) == (8, ())
    assert not {"last.weight", "other.weight"} & channels.produced.keys()
