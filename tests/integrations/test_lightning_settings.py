"""Settings and callbacks of Lightning's Trainer beside pruning: precision, averages, optimisers stepped by hand."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.surgery.progress import ScheduleWarning

from .test_lightning import PRUNING, L, Module, X, loader, make, pytestmark, sparsity

from sparsify.integrations import LightningCallback  # isort: skip (skipped without lightning)

__all__ = ["pytestmark"]


class ByHand(Module):
    """Steps its optimisers itself: one of the network, and with `two` one of a part that judges it."""

    def __init__(self, two: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.judge = nn.Linear(8, 1) if two else None

    def training_step(self, batch: torch.Tensor, index: int) -> None:  # type: ignore[override]
        found = self.optimizers()
        losses = [(self.net(batch) - batch).square().mean()]
        losses += [] if self.judge is None else [self.judge(batch).square().mean()]
        for one, loss in zip(found if isinstance(found, list) else [found], losses, strict=True):
            one.zero_grad()
            self.manual_backward(loss)
            one.step()

    def configure_optimizers(self) -> Any:
        parts = [self.net] if self.judge is None else [self.net, self.judge]
        return [torch.optim.AdamW(part.parameters(), lr=1e-2) for part in parts]


@pytest.mark.parametrize(("two", "steps"), [(False, 20), (True, 40)], ids=["one optimiser", "two optimisers"])
def test_manual_optimisation_is_counted_as_the_trainer_counts_it(tmp_path: Path, two: bool, steps: int) -> None:
    pruning = LightningCallback(PRUNING, total_steps=steps if two else None)
    module = ByHand(two)
    trainer = make(tmp_path, pruning, accumulate_grad_batches=1)
    trainer.fit(module, loader())
    assert pruning.loop.pruner.position == trainer.global_step == pruning.loop.pruner.total_steps == steps  # type: ignore[union-attr]
    assert sparsity(module) == pytest.approx(0.5)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_averaged_weights_stay_pruned_whatever_the_order_of_the_callbacks(tmp_path: Path, first: bool) -> None:
    averaging = L.callbacks.StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)
    pruning = LightningCallback(PRUNING)
    module = Module()
    make(tmp_path, *((averaging, pruning) if first else (pruning, averaging)), max_epochs=4).fit(module, loader())
    for name, mask in sparsify.get_masks(module).items():
        assert float(mask.float().mean()) == 0.5 and not module.get_parameter(name)[~mask].any()


@pytest.mark.parametrize(
    "given",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"max_epochs": -1, "max_steps": 9},
    ],
    ids=["bf16-mixed", "bf16-true", "clipped by value", "max_steps"],
)
def test_settings_of_the_trainer_change_nothing_of_the_pruning(tmp_path: Path, given: dict[str, Any]) -> None:
    module = Module()
    make(tmp_path, LightningCallback(PRUNING), **given).fit(module, loader())
    assert sparsity(module) == pytest.approx(0.5)


def test_a_run_that_a_callback_stops_keeps_its_last_checkpoint_and_goes_on_from_it(tmp_path: Path) -> None:
    def run(folder: Path, *more: Any, **given: Any) -> Module:
        kept = L.callbacks.ModelCheckpoint(folder, save_last=True, every_n_epochs=1)
        module = Module(given.pop("seed", 0))
        trainer = make(folder, LightningCallback(PRUNING), kept, *more, max_epochs=4, enable_checkpointing=True)
        trainer.fit(module, loader(), **given)
        return module

    whole = run(tmp_path / "whole")
    stopping = L.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0, check_on_train_epoch_end=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        run(tmp_path / "b", stopping)
    again = run(tmp_path / "b", seed=1, ckpt_path="last")
    masks, theirs = sparsify.get_masks(whole), sparsify.get_masks(again)
    assert all(torch.equal(masks[name], theirs[name]) for name in masks)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_a_module_that_cannot_get_its_masks_back_is_refused(tmp_path: Path, strategy: str) -> None:
    trainer = make(tmp_path, pruning := LightningCallback(PRUNING), strategy=strategy, devices=2)
    module = Module()
    with pytest.raises(SparsifyError, match=r"call sparsify\.convert\(module\) before fit"):
        pruning.setup(trainer, module, "fit")
    assert not hasattr(module.net[0], "weight_mask")
    sparsify.convert(module)
    pruning.setup(trainer, module, "fit")
    LightningCallback(PRUNING).setup(trainer, Module(), "test")  # which changes no masks


@pytest.mark.slow
def test_a_converted_module_gets_its_masks_back_from_processes_of_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "")
    monkeypatch.delenv("MASTER_PORT")  # Lightning sets it
    sparsify.convert(module := Module())
    trainer = make(tmp_path, LightningCallback(PRUNING), strategy="ddp_spawn", devices=2, accumulate_grad_batches=1)
    trainer.fit(module, torch.utils.data.DataLoader(X, batch_size=4))
    assert sparsity(module) == 0.5 and float((module.net[0].weight == 0).float().mean()) == 0.5
