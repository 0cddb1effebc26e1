"""Modules that users write: graph layers of torch_geometric, layers of torch.nn, a module of Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sparsify.calls import Inputs

from .example import Builder, Wild, images, noise, tokens


class _Graph(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = getattr(import_module("torch_geometric.nn"), kind)
        more = {"heads": 2, "concat": True} if kind == "GATConv" else {}
        self.first = layer(12, 16, **more)
        self.second = layer(16 * more.get("heads", 1), 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edges).relu(), edges)
        return out


def _graph(kind: str) -> Builder:
    def edges(nodes: int) -> Tensor:
        return torch.randint(nodes, (2, 4 * nodes), generator=torch.Generator().manual_seed(0))

    return lambda: Wild(_Graph(kind), Inputs(noise(9, 12), edges(9)), Inputs(noise(20, 12), edges(20)))


def _transformer() -> Wild:
    model = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
    return Wild(model, Inputs(noise(1, 7, 32), noise(1, 5, 32)), Inputs(noise(2, 9, 32), noise(2, 6, 32)))


class _Packed(nn.Module):
    """A classifier of sequences of unequal lengths."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 16)
        self.rnn = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        out: Tensor = self.head(states.amax(1))
        return out


def _packed(kind: Any) -> Builder:
    return lambda: Wild(
        _Packed(kind),
        Inputs(tokens(2, 9), torch.tensor([9, 5])),
        Inputs(tokens(3, 11), torch.tensor([4, 11, 7])),
    )


class _Captions(nn.Module):
    """A decoder of torch.nn over image features, its mask causal."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.embed, self.decoder = nn.Embedding(96, 32), nn.TransformerDecoder(layer, 2, nn.LayerNorm(32))
        self.head = nn.Linear(32, 96)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=memory.dtype)
        out: Tensor = self.head(self.decoder(self.embed(ids), memory, tgt_mask=mask, tgt_is_causal=True))
        return out


def _captions() -> Wild:
    return Wild(_Captions(), Inputs(tokens(1, 7), noise(1, 5, 32)), Inputs(tokens(2, 9), noise(2, 6, 32)))


def _lightning() -> Wild:
    lightning = import_module("lightning.pytorch")

    class Classifier(lightning.LightningModule):  # type: ignore[name-defined, misc]
        """A network in a module of Lightning, with a loss and a table beside it."""

        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"classes": 4})
            self.net = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            self.head, self.loss = nn.Linear(16, 4), nn.CrossEntropyLoss(weight=torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.net(x))
            return out

    return images(Classifier(), 16, 24)


LAYERS: dict[str, Builder] = {
    **{f"pyg {kind}": _graph(kind) for kind in ("GCNConv", "GATConv", "SAGEConv")},
    "torch.nn Transformer": _transformer,
    "torch.nn TransformerDecoder": _captions,
    "torch.nn LSTM, packed": _packed(nn.LSTM),
    "torch.nn GRU, packed": _packed(nn.GRU),
    "lightning module": _lightning,
}
