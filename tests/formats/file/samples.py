"""The models in samples/, files that were written by the first writers of versions 1 and 2. Nothing here is random."""

from pathlib import Path

import torch
from torch import Tensor, nn

from sparsify.surgery.shrink.cuts import Cuts, apply_cuts
from tests.formats.toys import UNSIGNED, Holder, Standardised

FOLDER = Path(__file__).parent / "samples"
EDGES = torch.tensor([0x7FC12345, -0x80000000, 0x7F800000, -0x00800000, 1, 0x3F800000, -1, 0], dtype=torch.int32)


def bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values whose bits count up, NaNs, infinities, subnormals and zeros of both signs among them."""
    size = int(torch.Size(shape).numel())
    numbers = (torch.arange(size) * 2654435761 + 12345) % 2**31
    content = numbers.to(torch.int32)
    content[: len(EDGES)] = EDGES[:size]
    if dtype.itemsize < 4:
        content = content >> 16
    return content.to(UNSIGNED[dtype.itemsize]).view(dtype).reshape(shape)


def every(shape: tuple[int, ...], step: int) -> Tensor:
    """A mask that keeps one entry in `step`."""
    return (torch.arange(int(torch.Size(shape).numel())) % step == 0).reshape(shape)


class Version1(nn.Module):
    """Each encoding of version 1, several types, an empty tensor, a scalar, a shared one, plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Holder(bits((6, 4, 3, 3), torch.float32), every((6, 4, 3, 3), 5))
        self.narrow = Holder(bits((5, 7), torch.float16), every((5, 7), 4))
        self.brain = Holder(bits((40,), torch.bfloat16), every((40,), 2))
        self.wide = Holder(torch.arange(9.0, dtype=torch.float64).view(3, 3), every((3, 3), 3))
        self.full = Holder(bits((4, 4), torch.float32), every((4, 4), 1))
        self.none = Holder(bits((30,), torch.float32), torch.zeros(30, dtype=torch.bool))
        self.empty = Holder(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))
        self.scalar = Holder(torch.tensor(2.5), torch.tensor(True))
        self.raw = Standardised(bits((5, 3), torch.float32), every((5, 3), 2))
        self.again = self.conv
        self.norm = nn.BatchNorm1d(3)


class Version2(nn.Module):
    """A model that was cut: fc1 had ten units."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, 10)
        self.fc2 = nn.Linear(10, 2)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) / 8 + index)


CUTS = Cuts(
    {"fc1.weight": {0: (1, 4, 9)}, "fc1.bias": {0: (1, 4, 9)}, "fc2.weight": {1: (1, 4, 9)}},
    {"fc1.out_features": 7, "fc2.in_features": 7},
)


def version2() -> nn.Module:
    """Version2 after the cut, with masks on both weights and on a bias."""
    from sparsify import convert, get_masks, set_masks
    from sparsify.surgery.conversion.mask_extra import mask_also

    model = apply_cuts(Version2(), CUTS)
    convert(model)
    mask_also(model, ["fc1.bias"])
    set_masks(model, {name: every(tuple(mask.shape), 3) for name, mask in get_masks(model).items()})
    return model
