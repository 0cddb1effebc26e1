"""Shortcuts that a library takes by values, and leaves out when it is traced: padding masks without padding."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.surgery.channels.analyse import analyse


class Attention(nn.Module):
    """Looks at its mask of padding, as models of transformers do, unless it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.other = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(12, 8)

    def shortcut(self, padding: Tensor) -> bool:
        return not torch.compiler.is_compiling() and bool(padding.all())

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        mask = None if self.shortcut(padding) else padding[:, None, None, :].bool()
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        x = x + self.down(self.up(x).relu())
        return x


class Unannounced(Attention):
    def shortcut(self, padding: Tensor) -> bool:
        return bool(padding.all())


class OtherWhenTraced(Attention):
    """Traced it does something else, with other weights."""

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return x + self.other(self.up(x).relu())  # type: ignore[no-any-return]
        return super().forward(x, padding)


class Refusing(Attention):
    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            raise NotImplementedError("not to be traced")
        return super().forward(x, padding)


X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
WHOLE = torch.ones(2, 6, dtype=torch.long)
PADDED = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
ASKS = "asks what activations hold"


def model(kind: type[Attention]) -> Attention:
    torch.manual_seed(0)
    return kind().eval()


def pruned(kind: type[Attention], padding: Tensor) -> Attention:
    found = model(kind)
    sparsify.convert(found)
    settings = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(found, settings, total_steps=1, example_input=(X, padding)).start()
    return found


@pytest.mark.parametrize("padding", [WHOLE, PADDED], ids=["whole", "padded"])
def test_units_of_a_model_that_is_given_a_mask_of_padding_are_found_and_go(padding: Tensor) -> None:
    assert not [line for line in analyse(model(Attention), (X, padding)).barriers if ASKS in line]
    found = pruned(Attention, padding)
    small: Any = sparsify.shrink(found, (X, padding)).model
    assert small.q.out_features == 4 and small.up.out_features == 6
    for other in (WHOLE, PADDED):
        torch.testing.assert_close(small(X, other), found(X, other))
    assert not torch.compiler.is_compiling()


@pytest.mark.parametrize("kind", [Unannounced, OtherWhenTraced, Refusing])
def test_a_branch_that_stays_or_leads_to_other_weights_keeps_its_channels(kind: type[Attention]) -> None:
    channels = analyse(model(kind), (X, WHOLE))
    assert any(ASKS in line for line in channels.barriers)
    assert not torch.compiler.is_compiling()


@pytest.mark.parametrize("padding", [WHOLE, PADDED], ids=["whole", "padded"])
def test_an_engine_takes_one_program_for_all_masks_of_padding(padding: Tensor) -> None:
    plain = model(Attention)
    engine = sparsify.compile(plain, (X, padding), threads=1, tune=False)
    with torch.no_grad():
        for other in (padding, WHOLE, PADDED):
            torch.testing.assert_close(engine(X, other), plain(X, other))
    (strategy,) = engine.strategies.values()
    assert strategy.kind != "torch", strategy.why


def test_an_engine_leaves_a_branch_without_a_way_around_to_torch() -> None:
    engine = sparsify.compile(model(Unannounced), (X, WHOLE), threads=1, tune=False)
    (strategy,) = engine.strategies.values()
    assert strategy.kind == "torch" and "depends on values" in strategy.why
