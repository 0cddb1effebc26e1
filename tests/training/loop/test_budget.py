"""A model that is shrunk in the middle of its training has as many multiply-adds left as the recipe says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsify import Pruner, convert, shrink

RECIPE = Path(__file__).parents[3] / "recipes" / "3sp.yaml"
MODELS = [("resnet18", 32, {}), ("resnet50", 32, {}), ("regnetx_002", 32, {}), ("levit_128s", 64, {"img_size": 64})]


def multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    """Return PyTorch's own count, in eval mode."""
    mode = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    model.train(mode)
    return counter.get_total_flops() // 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "arguments"), MODELS)
def test_the_shrunk_model_has_the_share_that_was_asked_for(name: str, size: int, arguments: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    x = torch.randn(4, 3, size, size)
    settings = {key: value for key, value in yaml.safe_load(RECIPE.read_text())["prune"].items() if key != "shrink"}
    convert(model, ignore=["last"])
    pruner = Pruner(model, settings, 1, example_input=x)
    pruner.start([(x, torch.arange(4))], nn.functional.cross_entropy)
    report = shrink(model, x)
    left = multiply_adds(report.model, x) / multiply_adds(timm.create_model(name, num_classes=10, **arguments), x)
    assert 0.235 < left <= 0.25
    assert left == pytest.approx(1 - pruner.report().share, abs=0.005)
    assert report.multiply_adds[1] / report.multiply_adds[0] == pytest.approx(left, abs=1e-9)
    assert report.removed == report.pruned == pruner.report().chosen and report.kept == () == report.uncounted
    assert report.training == "equal" and f"{100 * left:.1f} % left" in str(report)
