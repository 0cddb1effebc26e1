import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.loop.recalibrate import recalibrate_batch_norm


def test_statistics_are_the_plain_mean_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
    model[0].running_mean.fill_(100.0)
    classes = torch.zeros(2)
    batches = [(torch.tensor([[0.0], [2.0]]), classes), (torch.tensor([[4.0], [10.0]]), classes)]
    recalibrate_batch_norm(model, batches)
    # Means 1 and 7; unbiased variances 2 and 18.
    assert model[0].running_mean.item() == 4.0 and model[0].running_var.item() == 10.0
    assert model[0].momentum == 0.1
    assert model[0].training and model[1].training


def test_a_model_without_batch_norm_is_not_even_run() -> None:
    recalibrate_batch_norm(nn.Linear(1, 1), iter([("would fail", None)]))  # type: ignore[list-item]


def test_statistics_momenta_and_modes_come_back_when_the_model_fails() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    model(torch.randn(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = [(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(4, 5), torch.zeros(4))]
    with pytest.raises((RuntimeError, ValueError)):
        recalibrate_batch_norm(model, wrong)
    assert model[0].momentum == 0.1 and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_batch_is_refused_and_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    model(torch.randn(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SparsifyError, match=r"^recalibrate_batch_norm: batches has no batch [^\n]*$"):
        recalibrate_batch_norm(model, iter(()))
    assert model[0].momentum == 0.1 and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
