"""The networks of the study for 32x32 images: residual networks of twice the usual width, and VGG-19."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of 6 * `blocks` + 2 layers (He et al. 2016, section 4.2), with 1x1 shortcuts and batch norm.

    Takes images (batch x channels x height x width) of any size, returns scores (batch x classes).
    """

    def __init__(
        self, blocks: int, *, num_classes: int = 10, in_channels: int = 3, widths: tuple[int, int, int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        for index, (before, width) in enumerate(pairwise((widths[0], *widths))):
            first = BasicBlock(before, width, stride=1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1))))
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.stages(out).mean((2, 3)))  # type: ignore[no-any-return]


class VGG(nn.Module):
    """VGG-19 (Simonyan and Zisserman 2015, configuration E) with batch norm and two hidden linear layers of 512 units.

    Batch norm follows every layer except the last, so these layers have no bias. Takes images (batch x channels x
    height x width) of at least 32x32 pixels, returns scores (batch x classes).
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(512, 512, bias=False),
                bn1=nn.BatchNorm1d(512),
                relu1=nn.ReLU(True),
                fc2=nn.Linear(512, 512, bias=False),
                bn2=nn.BatchNorm1d(512),
                relu2=nn.ReLU(True),
                fc3=nn.Linear(512, num_classes),
            )
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        # For 32x32 images the mean is over one position; it also allows larger images.
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def initialise(model: nn.Module) -> None:
    """Initialise conv and linear weights Xavier-normal (Glorot and Bengio 2010) and their biases to 0, in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resnet20(**arguments: object) -> ResNet:
    """Return the residual network of 20 layers."""
    return ResNet(3, **arguments)  # type: ignore[arg-type]


def resnet32(**arguments: object) -> ResNet:
    """Return the residual network of 32 layers."""
    return ResNet(5, **arguments)  # type: ignore[arg-type]


def resnet56(**arguments: object) -> ResNet:
    """Return the residual network of 56 layers."""
    return ResNet(9, **arguments)  # type: ignore[arg-type]


def vgg19_bn(**arguments: object) -> VGG:
    """Return VGG-19 with batch norm."""
    return VGG(**arguments)  # type: ignore[arg-type]


CIFAR_MODELS = {"resnet20": resnet20, "resnet32": resnet32, "resnet56": resnet56, "vgg19_bn": vgg19_bn}
