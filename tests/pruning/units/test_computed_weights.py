"""Units of layers whose weight a parametrization computes: the mask is on the computed weight, and so are its rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as spectral_norm_hook
from torch.nn.utils import weight_norm as weight_norm_hook
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sparsify.pruning.pruner import Pruner
from sparsify.pruning.units.costs import parameters, savings
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.conversion.convert import convert
from sparsify.surgery.conversion.fold import fold
from sparsify.surgery.mask_state.masks import all_masked_weights, effective_weight
from sparsify.surgery.shrink.shrink import shrink

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")

KINDS: dict[str, Callable[[Any], nn.Module]] = {
    "weight norm": weight_norm,
    "weight norm, hook": weight_norm_hook,
    "spectral norm": spectral_norm,
    "spectral norm, hook": spectral_norm_hook,
}


def network(kind: str) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    made = KINDS[kind]
    up = made(nn.ConvTranspose1d(8, 6, 4, stride=2))
    model = nn.Sequential(made(nn.Conv1d(3, 8, 3)), nn.ELU(), up, nn.ELU(), nn.Conv1d(6, 2, 1)).double().eval()
    return model, torch.randn(2, 3, 20, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_units_go_and_the_outputs_stay(kind: str) -> None:
    model, x = network(kind)
    convert(model)
    first, second, _ = all_masked_weights(model)
    scores = [effective_weight(one).abs().movedim(dim, 0).flatten(1).mean(1) for one, dim in ((first, 0), (second, 1))]
    settings = {"granularity": "unit", "sparsity": 0.5, "scope": "layer"}
    pruner = Pruner(model, settings, total_steps=1, example_input=x)
    pruner.start()
    assert pruner.report().notes == ()
    for weight, dim, score in ((first, 0, scores[0]), (second, 1, scores[1])):
        kept = weight.mask.movedim(dim, 0).flatten(1)
        assert torch.equal(kept.any(1), kept.all(1)) and int(kept.all(1).sum()) == len(score) // 2
        assert score[kept.all(1)].min() > score[~kept.all(1)].max()
    report = shrink(model, x)
    assert report.pruned == 4 + 3 and report.kept == ()
    plain = fold(model)
    for given in (x, torch.randn(3, 3, 33, dtype=torch.float64)):
        torch.testing.assert_close(report.model(given), plain(given))
    assert [tuple(p.shape) for n, p in report.model.named_parameters() if n.endswith("weight")] == [
        (4, 3, 3),
        (4, 3, 4),
        (2, 3, 1),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_a_unit_saves_are_those_of_its_row_bias_and_columns(kind: str) -> None:
    model, x = network(kind)
    convert(model)
    channels = analyse(model, x)
    saved = savings(parameters(model, channels), torch.ones(channels.groups, dtype=torch.bool))
    assert saved.tolist() == [9 + 1 + 6 * 4] * 8 + [8 * 4 + 1 + 2] * 6
