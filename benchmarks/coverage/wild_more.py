"""More models of the `wild` table: of torchvision, timm, MONAI, torch_geometric, open_clip, Lightning and torch.nn."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sparsify.calls import Inputs

from .wild_further import FURTHER
from .wild_models import BUILDERS, Builder, Wild, _images, noise, tokens

MONAI: dict[str, dict[str, Any]] = {
    "UNet": dict(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 16), strides=(2, 2), num_res_units=1),
    "DynUNet": dict(
        spatial_dims=3, in_channels=1, out_channels=2, kernel_size=[3, 3, 3], strides=[1, 2, 2],
        upsample_kernel_size=[2, 2], filters=[8, 16, 16],
    ),
    "UNETR": dict(
        in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=8, hidden_size=32, mlp_dim=64, num_heads=4
    ),
}  # fmt: skip


def _torchvision(folder: str, name: str, size: int, other: int, **changes: Any) -> Builder:
    def build() -> Wild:
        module = import_module(f"torchvision.models.{folder}")
        model = getattr(module, name)(weights=None, **changes)
        if folder == "optical_flow":
            pair = [Inputs(noise(n, 3, s, s), noise(n, 3, s, s).flip(-1)) for n, s in ((1, size), (2, other))]
            return Wild(model, *pair)
        if folder == "detection":
            return Wild(model, Inputs([noise(3, size, size)]), Inputs([noise(3, size, size), noise(3, other, size)]))
        return _images(model, size, other)

    return build


def _monai(kind: str) -> Builder:
    def build() -> Wild:
        model = getattr(import_module("monai.networks.nets"), kind)(**MONAI[kind])
        other = 32 if kind == "UNETR" else 24
        size = 32 if kind == "UNETR" else 16
        return Wild(model, Inputs(noise(1, 1, *[size] * 3)), Inputs(noise(2, 1, *[other] * 3)))

    return build


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


def _open_clip() -> Wild:
    model = import_module("open_clip").CLIP(
        embed_dim=24,
        vision_cfg=dict(image_size=32, layers=2, width=32, head_width=8, patch_size=8),
        text_cfg=dict(context_length=12, vocab_size=96, width=32, heads=4, layers=2),
    )
    return Wild(model, Inputs(noise(1, 3, 32, 32), tokens(1, 12)), Inputs(noise(2, 3, 32, 32), tokens(2, 12).flip(1)))


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


def _video() -> Wild:
    model = import_module("torchvision.models.video").mc3_18(weights=None, num_classes=4)
    return Wild(model, Inputs(noise(1, 3, 4, 32, 32)), Inputs(noise(2, 3, 6, 48, 48)))


def _naflex() -> Wild:
    model = import_module("timm").create_model(
        "naflexvit_base_patch16_gap", embed_dim=32, depth=2, num_heads=4, patch_size=8, num_classes=4
    )
    return _images(model, 32, 48)


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

    return _images(Classifier(), 16, 24)


_NO_BACKBONE = dict(weights_backbone=None, num_classes=4)
ALL: dict[str, Builder] = {
    **BUILDERS,
    "torchvision fasterrcnn_mobilenet": _torchvision(
        "detection", "fasterrcnn_mobilenet_v3_large_320_fpn", 96, 128, min_size=96, max_size=160,
        box_score_thresh=0.0, **_NO_BACKBONE,
    ),
    "torchvision ssdlite": _torchvision(
        "detection", "ssdlite320_mobilenet_v3_large", 96, 128, score_thresh=0.0, **_NO_BACKBONE
    ),
    "torchvision deeplabv3_mobilenet": _torchvision(
        "segmentation", "deeplabv3_mobilenet_v3_large", 64, 96, **_NO_BACKBONE
    ),
    "torchvision lraspp": _torchvision("segmentation", "lraspp_mobilenet_v3_large", 64, 96, **_NO_BACKBONE),
    "torchvision raft_small": _torchvision("optical_flow", "raft_small", 128, 136),
    **{f"monai {kind}": _monai(kind) for kind in MONAI},
    **{f"pyg {kind}": _graph(kind) for kind in ("GCNConv", "GATConv", "SAGEConv")},
    "open_clip CLIP": _open_clip,
    "torch.nn Transformer": _transformer,
    "torch.nn LSTM, packed": _packed(nn.LSTM),
    "torch.nn GRU, packed": _packed(nn.GRU),
    "torchvision mc3_18": _video,
    "timm NaFlexViT": _naflex,
    "torch.nn TransformerDecoder": _captions,
    "lightning module": _lightning,
    **FURTHER,
}  # fmt: skip
