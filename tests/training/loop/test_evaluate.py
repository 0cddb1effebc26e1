import math

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.loop.evaluate import evaluate


def test_accuracy_and_loss_are_means_over_examples_not_batches() -> None:
    # Batches of 2 and 1: right, wrong; right. Every score is 0 or log 3, so probabilities are 1/4 and 3/4.
    high = math.log(3)
    batches = [
        (torch.tensor([[high, 0.0], [high, 0.0]]), torch.tensor([0, 1])),
        (torch.tensor([[0.0, high]]), torch.tensor([1])),
    ]
    found = evaluate(nn.Identity(), batches)
    assert found.accuracy == 2 / 3 and found.count == 3
    assert found.loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)


def test_the_model_is_in_eval_mode_and_every_module_keeps_its_own_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))]
    assert evaluate(model, batches) == evaluate(model, batches)
    assert [module.training for module in model] == [False, True, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_empty_test_set_is_an_error() -> None:
    with pytest.raises(SparsifyError, match="empty"):
        evaluate(nn.Identity(), [])
