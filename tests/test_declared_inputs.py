from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sparsify.declared_inputs import declared_inputs


def model(main: str, **config: Any) -> nn.Module:
    net = nn.Linear(2, 2)
    net.config, net.main_input_name = SimpleNamespace(model_type="x", **config), main  # type: ignore[assignment]
    return net


@pytest.mark.parametrize(
    ("net", "shapes"),
    [
        (model("input_ids", vocab_size=20), {"input_ids": (3, 12)}),
        (model("pixel_values", num_channels=1, image_size=(8, 16)), {"pixel_values": (3, 1, 8, 16)}),
        (model("input_values"), {"input_values": (3, 4000)}),
        (
            model("input_features", num_mel_bins=4, max_source_positions=5, vocab_size=9, is_encoder_decoder=True),
            {"input_features": (3, 4, 10), "decoder_input_ids": (3, 12)},
        ),
        (
            model(
                "input_ids",
                text_config=SimpleNamespace(vocab_size=7),
                vision_config=SimpleNamespace(num_channels=2, image_size=8),
            ),
            {"pixel_values": (3, 2, 8, 8), "input_ids": (3, 12)},
        ),
    ],
)
def test_inputs_are_of_the_sizes_of_the_configuration(net: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    found = declared_inputs(net, 3)
    assert found is not None
    assert {name: tuple(value.shape) for name, value in found.kwargs.items()} == shapes
    again = declared_inputs(net, 3)
    assert again is not None and all(torch.equal(found.kwargs[name], again.kwargs[name]) for name in shapes)


def test_tokens_are_in_the_vocabulary() -> None:
    found = declared_inputs(model("input_ids", vocab_size=20), 50)
    assert found is not None
    ids = found.kwargs["input_ids"]
    assert ids.min() >= 0 and ids.max() < 20 and len(ids.unique()) > 10


def test_other_models_declare_nothing() -> None:
    assert declared_inputs(nn.Linear(2, 2), 1) is None
