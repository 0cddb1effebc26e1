"""Settings of the Trainer of transformers beside pruning: checkpointing, precision, compilation, best checkpoints."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.surgery.progress import ScheduleWarning

from .test_huggingface import PRUNING, Kill, Killed, make, sparsity, transformers

from sparsify.integrations import HuggingFaceCallback  # isort: skip (skipped without transformers)


@pytest.mark.parametrize(
    "given",
    [
        {"gradient_checkpointing": True, "bf16": True},
        {"fp16": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"optim": "adafactor", "label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0},
        {"auto_find_batch_size": True},
        {"max_steps": -1, "num_train_epochs": 1},
    ],
    ids=["checkpointing", "fp16", "compiled", "adafactor", "batch size", "epochs"],
)
def test_settings_of_the_trainer_change_nothing_of_the_pruning(tmp_path: Path, given: dict[str, Any]) -> None:
    pruning = HuggingFaceCallback(PRUNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library and of torch about such settings on a CPU
        trainer = make(tmp_path, pruning, **given)
        trainer.train()
    assert sparsity(trainer.model) == pytest.approx(0.5, abs=1e-3)
    assert pruning.loop.pruner.position == trainer.state.global_step == 10


@pytest.mark.parametrize("given", [{"save_total_limit": 1}, {"gradient_checkpointing": True}], ids=["limit", "again"])
def test_a_killed_run_with_such_settings_goes_on_to_the_same_masks(tmp_path: Path, given: dict[str, Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = make(tmp_path / "a", HuggingFaceCallback(PRUNING), **saving)
        whole.train()
        with pytest.raises(Killed):
            make(tmp_path / "b", HuggingFaceCallback(PRUNING), Kill(7), **saving).train()
        again = make(tmp_path / "b", HuggingFaceCallback(PRUNING), **saving)
        again.train(resume_from_checkpoint=True)
    masks, theirs = sparsify.get_masks(whole.model), sparsify.get_masks(again.model)
    assert masks.keys() == theirs.keys() and all(torch.equal(masks[name], theirs[name]) for name in masks)


def test_the_best_by_epochs_is_one_of_after_the_pruning(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2}
    trainer = make(tmp_path, HuggingFaceCallback(PRUNING), max_steps=-1, num_train_epochs=3, **best)
    trainer.train()
    assert sparsity(trainer.model) == pytest.approx(0.5, abs=1e-3)
    assert int(trainer.state.best_model_checkpoint.rpartition("-")[2]) > 8


def test_early_stopping_before_the_end_of_pruning_is_said(tmp_path: Path) -> None:
    stopping = transformers.EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=10.0)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    trainer = make(tmp_path, HuggingFaceCallback(PRUNING), stopping, save_strategy="steps", **best)
    with pytest.warns(ScheduleWarning, match="cut short at step 4: 3 of 5 updates"):
        trainer.train()
