"""Pruning in Lightning's Trainer: steps, records, checkpoints, averages, and runs that are killed and go on."""

import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.pruning.report import SparsityWarning
from sparsify.surgery.progress import ScheduleWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    L: Any = pytest.importorskip("lightning.pytorch", reason="needs lightning (the extra 'lightning')")

from sparsify.integrations import LightningCallback  # noqa: E402

# What Lightning says of workers, of folders and of torch's own classes.
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]
PRUNING = {"sparsity": 0.5, "scope": "filter", "schedule": "linear", "every": "2it", "end": "8it"}
X = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


class Killed(Exception):
    """What ends a run where a signal would."""


class Kill(L.Callback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


class Module(L.LightningModule):  # type: ignore[misc]
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = (self.net(batch) - batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Loader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
    """Goes on within an epoch, which Lightning leaves to the loader."""

    done = start = 0

    def __iter__(self) -> Any:
        self.done, self.start = self.start, 0
        for batch in islice(super().__iter__(), self.done, None):
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["done"]


def loader() -> Loader:
    return Loader(X, batch_size=4)  # type: ignore[arg-type]


def make(folder: Path, *callbacks: Any, **given: Any) -> Any:
    settings: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2, "accelerator": "cpu", "logger": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(**settings | given, default_root_dir=str(folder), callbacks=list(callbacks))


def sparsity(model: nn.Module) -> float:
    masks = sparsify.get_masks(model).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_a_run_prunes_after_optimiser_steps_and_logs_what_is_removed(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    pruning = LightningCallback(PRUNING, per_layer=True)
    module = Module()
    logger = CSVLogger(tmp_path)
    trainer = make(tmp_path, pruning, logger=logger, log_every_n_steps=2, gradient_clip_val=0.1)
    trainer.fit(module, loader())
    pruner = pruning.loop.pruner
    assert pruner.position == trainer.global_step == pruner.total_steps == 10  # not 20 batches
    assert sparsity(module) == 0.5 and float((module.net[0].weight == 0).float().mean()) == 0.5
    assert trainer.callback_metrics["sparsity"] == 0.5
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("sparsity/net.0.weight")
    assert [float(row.split(",")[column]) for row in rows[1:]] == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize(
    ("pruning", "given"),
    [
        (PRUNING, {}),
        (PRUNING | {"masked_weights": "freeze", "criterion": "random"}, {"precision": "bf16-mixed"}),
        (
            {"sparsity": 0.6, "scope": "filter", "schedule": {"name": "cyclic", "cycles": 2}, "after_cycles": "union"},
            {},
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_masks_and_weights(
    pruning: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    def checkpoints(folder: Path) -> dict[str, Any]:
        kept = L.callbacks.ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        return {"enable_checkpointing": True, "callbacks": kept}

    def run(folder: Path, module: Any, *more: Any, path: Path | None = None) -> Any:
        extra = checkpoints(folder)
        callbacks = [LightningCallback(pruning), *more, extra.pop("callbacks")]
        make(folder, *callbacks, **extra, **given).fit(module, loader(), ckpt_path=path)
        return module

    whole = run(tmp_path / "whole", Module()).state_dict()
    with pytest.raises(Killed):
        run(tmp_path / "run", Module(), Kill(5))
    after = run(tmp_path / "run", Module(seed=9), path=tmp_path / "run" / "step=3.ckpt")
    state = after.state_dict()
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[key], whole[key]) for key in whole)
    assert 0.4 < sparsity(after) < 0.61


class Validated(Module):
    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val_loss", float(self.trainer.global_step), batch_size=len(batch))  # rises


def test_a_best_checkpoint_from_before_the_end_of_pruning_is_told(tmp_path: Path) -> None:
    kept = L.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss")
    trainer = make(tmp_path, LightningCallback(PRUNING), kept, enable_checkpointing=True, num_sanity_val_steps=0)
    with pytest.warns(SparsityWarning, match="the best checkpoint by val_loss was written before pruning ended"):
        trainer.fit(Validated(), loader(), loader())
    assert kept.best_model_path


def test_averages_carry_the_masks_of_the_end(tmp_path: Path) -> None:
    average = L.callbacks.EMAWeightAveraging(decay=0.9)
    module = Module()
    make(tmp_path, LightningCallback(PRUNING), average).fit(module, loader())
    assert sparsity(module) == 0.5 and float((module.net[0].weight == 0).float().mean()) == 0.5
    assert sparsity(average._average_model.module) == 0.5


def test_layers_made_by_configure_model_are_pruned(tmp_path: Path) -> None:
    class Late(Module):
        def __init__(self) -> None:
            super().__init__()
            self.late: Any = None

        def configure_model(self) -> None:
            if self.late is None:
                self.late = nn.Linear(8, 8)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return (self.late(self.net(batch)) - batch).square().mean()

    module = Late()
    make(tmp_path, LightningCallback(PRUNING)).fit(module, loader())
    assert "late.weight" in sparsify.get_masks(module) and sparsity(module) == 0.5


def test_a_run_that_starts_pruned_keeps_what_is_removed(tmp_path: Path) -> None:
    module = Module()
    sparsify.convert(module, ignore=["last"])
    sparsify.Pruner(module, {"sparsity": 0.25, "schedule": "one_shot", "criterion": "random"}, total_steps=1).start()
    before = {name: mask.clone() for name, mask in sparsify.get_masks(module).items()}
    make(tmp_path, LightningCallback(PRUNING)).fit(module, loader())
    after = sparsify.get_masks(module)
    assert after.keys() == before.keys() == {"net.0.weight"} and sparsity(module) == 0.5
    assert not bool(after["net.0.weight"][~before["net.0.weight"]].any())


def test_a_run_that_ends_early_says_so(tmp_path: Path) -> None:
    class Stop(L.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    with pytest.warns(ScheduleWarning, match="cut short at step 5: 3 of 5 updates"):
        make(tmp_path, LightningCallback(PRUNING), Stop()).fit(Module(), loader())


def test_what_cannot_be_pruned_is_refused_in_one_line(tmp_path: Path) -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

    with pytest.raises(SparsifyError, match="the module has 2 optimisers: give total_steps"):
        make(tmp_path, LightningCallback(PRUNING), accumulate_grad_batches=1).fit(Two(), loader())
    with pytest.raises(SparsifyError, match="the training has no end; give total_steps, or max_steps"):
        make(tmp_path, LightningCallback(PRUNING), max_epochs=-1).fit(Module(), loader())
    kept = L.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    with pytest.raises(Killed):
        make(tmp_path, LightningCallback(PRUNING), Kill(5), kept, enable_checkpointing=True).fit(Module(), loader())
    with pytest.raises(SparsifyError, match="it was saved with sparsity 0.5, this pruner has 0.6"):
        other = LightningCallback(PRUNING | {"sparsity": 0.6})
        make(tmp_path, other).fit(Module(), loader(), ckpt_path=tmp_path / "step=3.ckpt")
