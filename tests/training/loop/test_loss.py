import math
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from sparsify.errors import SparsifyError
from sparsify.training.loop.loss import loss_of

# Two examples, two classes; the scores give the true class probability 1/2 and 3/4.
SCORES = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
CLASSES = torch.tensor([0, 1])
LOSS = (math.log(2) + math.log(4 / 3)) / 2


def test_plain_scores() -> None:
    assert loss_of(SCORES, CLASSES).item() == pytest.approx(LOSS)


def test_googlenet_heads_count_three_tenths_each() -> None:
    outputs = namedtuple("outputs", ["logits", "aux_logits2", "aux_logits1"])
    assert loss_of(outputs(SCORES, SCORES, SCORES), CLASSES).item() == pytest.approx(1.6 * LOSS)
    assert loss_of(outputs(SCORES, None, None), CLASSES).item() == pytest.approx(LOSS)


def test_inception_head_counts_four_tenths() -> None:
    assert loss_of(SimpleNamespace(logits=SCORES, aux_logits=SCORES), CLASSES).item() == pytest.approx(1.4 * LOSS)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    wrong = (math.log(2) + math.log(4)) / 2
    assert loss_of(SCORES, CLASSES, label_smoothing=0.5).item() == pytest.approx(0.75 * LOSS + 0.25 * wrong)


def test_half_precision_scores_give_a_float32_loss() -> None:
    assert loss_of(SCORES.bfloat16(), CLASSES).dtype == torch.float32


@pytest.mark.parametrize("output", [(SCORES, SCORES), {"out": SCORES}, SCORES[0], SCORES[None]])
def test_what_is_no_classifiers_output_is_one_clear_error(output: object) -> None:
    with pytest.raises(SparsifyError, match="not a classifier"):
        loss_of(output, CLASSES)
