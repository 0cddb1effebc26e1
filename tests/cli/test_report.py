"""What the command line says of a conversion."""

import re

import torch
from timm.layers import StdConv2d
from torch import Tensor, nn

import sparsify
from cli.convert import command
from cli.view.report import conversion_lines


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.proj


def test_weights_are_counted_by_how_their_masks_enter_and_each_word_is_explained() -> None:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), Projection(), nn.Linear(4, 4), nn.Linear(4, 2)]
    report = sparsify.convert(nn.Sequential(StdConv2d(3, 4, 3), *head), ignore=["last"])
    assert set(report.masked.values()) == {"direct", "substituted", "computed"}
    lines = conversion_lines(report)
    assert lines[0] == "masks: 3 weights, 140 numbers"
    for how in ("direct", "substituted", "computed"):
        assert any(re.match(rf"  1 {how}: \w+", line) for line in lines[1:4])
    assert lines[4] == "  no mask on 5.weight: ignored by 'last'"


def test_the_help_of_convert_explains_these_words() -> None:
    for how in ("direct", "substituted", "computed"):
        assert f"{how}, the " in " ".join((command.help or "").split())
