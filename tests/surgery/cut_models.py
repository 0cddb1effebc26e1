"""Models, and cuts written by hand for them."""

from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from sparsify.surgery.shrink.cuts import Cuts


class Own(nn.Module):
    """A user's own: an embedding tied to the output, sizes in nested attributes, a buffer that is not saved."""

    def __init__(self, words: int = 11, width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.sizes = {"hidden": [hidden, (width, hidden)]}
        self.shape = torch.Size((1, hidden))
        self.embedding = nn.Embedding(words, width)
        self.first = nn.Linear(width, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embedding.weight
        self.scale: Tensor
        self.register_buffer("scale", torch.arange(1.0, hidden + 1), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        assert self.sizes["hidden"][0] == self.sizes["hidden"][1][1] == self.shape[1]  # type: ignore[index]
        hidden = self.norm(self.first(self.embedding(tokens))).view(-1, *self.shape) * self.scale
        output: Tensor = self.out(self.second(hidden.squeeze(1)))
        return output


OWN = Cuts(
    {
        "first.weight": {0: (1, 6)},
        "norm.weight": {0: (1, 6)},
        "norm.bias": {0: (1, 6)},
        "norm.running_mean": {0: (1, 6)},
        "norm.running_var": {0: (1, 6)},
        "scale": {0: (1, 6)},
        "second.weight": {1: (1, 6)},
    },
    {
        "sizes.hidden.0": 6,
        "sizes.hidden.1.1": 6,
        "shape": (1, 6),
        "first.out_features": 6,
        "norm.num_features": 6,
        "second.in_features": 6,
    },
)


def own(seed: int = 0, **sizes: int) -> Own:
    torch.manual_seed(seed)
    return Own(**sizes).double()


def tokens() -> Tensor:
    return torch.arange(20).reshape(20) % 11


def dead(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Make the units of `cuts` put out zero: rows, biases and norm's parameters are zero."""
    with torch.no_grad():
        for name, axes in cuts.removed.items():
            for dimension, indices in axes.items():
                parameter = dict(model.named_parameters()).get(name)
                if parameter is not None and dimension == 0:
                    parameter[list(indices)] = 0
    return model


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = torchvision.models.resnet18(num_classes=5)
    return model


GONE = tuple(range(0, 64, 3))
RESNET = Cuts(
    {
        "layer1.0.conv1.weight": {0: GONE},
        "layer1.0.bn1.weight": {0: GONE},
        "layer1.0.bn1.bias": {0: GONE},
        "layer1.0.bn1.running_mean": {0: GONE},
        "layer1.0.bn1.running_var": {0: GONE},
        "layer1.0.conv2.weight": {1: GONE},
    },
    {"layer1.0.conv1.out_channels": 42, "layer1.0.bn1.num_features": 42, "layer1.0.conv2.in_channels": 42},
)


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2)
    return model


HIDDEN = (0, 1, 2, 5, 700, 767)
VIT = Cuts(
    {
        "blocks.1.mlp.fc1.weight": {0: HIDDEN},
        "blocks.1.mlp.fc1.bias": {0: HIDDEN},
        "blocks.1.mlp.fc2.weight": {1: HIDDEN},
    },
    {"blocks.1.mlp.fc1.out_features": 762, "blocks.1.mlp.fc2.in_features": 762},
)

MODELS: dict[str, tuple[Any, Cuts, Tensor]] = {
    "resnet18": (resnet, RESNET, torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)),
    "vit": (vit, VIT, torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)),
    "own": (own, OWN, tokens()),
}
