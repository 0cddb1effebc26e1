"""Models of transformers made of a configuration, and values that configurations share."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sparsify.calls import Inputs

from .example import Builder, Wild, noise, tokens

TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=96)
GROUPED: dict[str, Any] = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
VISION = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32)
W2V = dict(conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2)

Row = tuple[str, str, Mapping[str, Any], str]  # configuration's class, model's class, changes of it, what it takes


def _inputs(takes: str, batch: int, other: bool) -> Inputs:
    found: dict[str, Tensor] = {}
    for part in takes.split(", "):
        kind, *sizes = part.split()
        size = int(sizes[-1 if other else 0]) if sizes else 0
        if kind in ("tokens", "text"):
            found["input_ids"] = tokens(batch, 17 if other else 12)
            if kind == "text":  # with its mask: without one some models look for padding
                found["attention_mask"] = torch.ones_like(found["input_ids"])
        elif kind == "decoder":
            found["decoder_input_ids"] = tokens(batch, 9 if other else 7)
        elif kind == "images":
            found["pixel_values"] = noise(batch, 3, size, size)
        elif kind == "features":
            found["input_features"] = noise(batch, 16, size)
            found["decoder_input_ids"] = tokens(batch, 9 if other else 7)
        else:
            found["input_values"] = noise(batch, 1300 if other else 1000)
    return Inputs(**found)


def configured(config: str, kind: str, changes: Mapping[str, Any], takes: str) -> Builder:
    """Return what builds the model of a `Row`."""

    def build() -> Wild:
        transformers = import_module("transformers")
        model = getattr(transformers, kind)(getattr(transformers, config)(**changes))
        found = [_inputs(takes, 1, False), _inputs(takes, 2, True)]
        if "use_cache" in signature(model.forward).parameters:  # keys and values as outputs would keep their heads
            found = [Inputs(**one.kwargs, use_cache=False) for one in found]
        return Wild(model, *found)

    return build
