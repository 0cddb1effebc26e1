"""Small models whose masks are put there by hand, so that these tests need no surgery."""

import torch
from torch import Tensor, nn

UNSIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Holder(nn.Module):
    """One weight with a mask."""

    masked_names = ("weight",)
    weight_mask: Tensor

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.__dict__["masked_names"] = ("weight",)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("weight_mask", mask)


class Standardised(Holder):
    """The forward would compute with a weight that depends on every raw value."""

    computed_weights = ("weight",)

    def compute_effective_weight(self, name: str) -> Tensor:
        weight: Tensor = getattr(self, name)
        return weight - weight.mean()


def holder(shape: tuple[int, ...], keep: float = 0.5, seed: int = 0) -> Holder:
    generator = torch.Generator().manual_seed(seed)
    return Holder(torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) < keep)


def network(seed: int = 0) -> nn.Sequential:
    """Masked weights that take `delta`, `full` and `raw`, a plain layer and an integer buffer."""
    torch.manual_seed(seed)
    full = holder((4, 4), keep=2.0)
    raw = holder((5, 3), seed=seed + 1)
    standardised = Standardised(raw.weight.detach(), raw.weight_mask)
    return nn.Sequential(holder((8, 4, 3, 3), keep=0.2, seed=seed), full, standardised, nn.BatchNorm1d(3))


def every_encoding() -> nn.Sequential:
    """That network, and a weight for each other encoding: 4 `bitmask`, 5 `whole`, 6 `n:m`, 7 and 8 `units`."""
    torch.manual_seed(9)
    whole = torch.arange(40) != 7
    two_of_four = torch.rand(12, 6, 4).argsort(dim=2) < 2
    live = torch.zeros(20, 30, 3, dtype=torch.bool)
    live[1::5, 2::6] = True
    some = live & (torch.rand(20, 30, 3) < 0.3)
    rest = [(40,), (12, 24), (20, 30, 3), (20, 30, 3)]
    masks = [whole, two_of_four.view(12, 24), live, some]
    holders = [Holder(torch.randn(shape), mask) for shape, mask in zip(rest, masks, strict=True)]
    return nn.Sequential(*network(), holder((9, 9), keep=0.5), *holders)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors agree in type, shape and every bit."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    unsigned = UNSIGNED[left.element_size()]
    return torch.equal(_flat(left).view(unsigned), _flat(right).view(unsigned))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1)
