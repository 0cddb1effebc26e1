"""Which modules of a model are cut as blocks, and what is said of `train.shard`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.processes.ranks import ALONE, Ranks
from sparsify.training.recipe.settings import DataSettings, TrainSettings
from sparsify.training.setup.shard import blocks_of, check_optimizer
from sparsify.training.setup.split import processes_lines

from ..run.test_sharded import Block, Scaled, network


def test_blocks_are_the_outermost_repeated_modules() -> None:
    model = network()
    assert blocks_of(model) == [model[4], model[5][0]]
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    tied = nn.Sequential(Block(4), Block(4))
    tied[1].down.weight = tied[0].down.weight
    assert blocks_of(tied) == []
    twice = nn.Sequential(Block(4), Block(4))
    twice[1].norm = twice[0].norm
    assert blocks_of(twice) == []
    nested = nn.Sequential(nn.Sequential(Block(4), nn.ReLU()), nn.Sequential(Block(4)), Scaled())
    assert blocks_of(nested) == [nested[0][0], nested[1][0], *blocks_of(nested[2])]


def test_optimisers_that_treat_every_entry_by_itself_go_with_parts() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    check_optimizer(torch.optim.AdamW(parameters), "adamw")

    class Own(torch.optim.SGD):
        """An optimiser whose step nobody here knows."""

    for optimizer in (torch.optim.Adafactor(parameters), Own(parameters, 0.1)):
        with pytest.raises(SparsifyError, match="train.optimizer: mine does not go with train.shard"):
            check_optimizer(optimizer, "mine")


def test_one_process_says_that_it_cuts_nothing_and_several_that_they_do() -> None:
    data, model, cut = DataSettings(), network(), TrainSettings(shard=True)
    [line] = processes_lines(data, model, ALONE, cut)
    assert line == "train.shard: one process trains the whole model; several take a part of it each"
    assert processes_lines(data, model, ALONE, TrainSettings()) == []
    assert "in parts" in processes_lines(data, model, Ranks(0, 2), cut)[-1]
    assert len(processes_lines(data, model, Ranks(0, 2), TrainSettings())) == 1
