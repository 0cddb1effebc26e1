"""Pruning in the Trainer of transformers: steps, records, checkpoints, and runs that are killed and go on."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import RunWarning, SparsifyError
from sparsify.pruning.report import SparsityWarning
from sparsify.surgery.progress import ScheduleWarning

transformers: Any = pytest.importorskip("transformers", reason="needs transformers (the extra 'hf')")

from sparsify.integrations import HuggingFaceCallback  # noqa: E402

PRUNING = {"sparsity": 0.5, "schedule": "linear", "every": "2it", "end": "8it"}


class Killed(Exception):
    """What ends a run where a signal would."""


class Kill(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def gpt2(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def texts(count: int = 40) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(1, 32, (count, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def make(folder: Path, *callbacks: Any, model: nn.Module | None = None, steps: int = 10, **given: Any) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": steps,
        "seed": 3,
    }
    settings |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 2, "use_cpu": True}
    args = transformers.TrainingArguments(str(folder), **settings | {"learning_rate": 1e-2} | given)
    data = texts()
    return transformers.Trainer(
        model or gpt2(), args, train_dataset=data, eval_dataset=data[:8], callbacks=list(callbacks)
    )


def sparsity(model: nn.Module) -> float:
    masks = sparsify.get_masks(model).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_a_run_prunes_after_optimiser_steps_and_logs_what_is_removed(tmp_path: Path) -> None:
    pruning = HuggingFaceCallback(PRUNING, per_layer=True)
    trainer = make(tmp_path, pruning)
    trainer.train()
    pruner = pruning.loop.pruner
    assert pruner.position == trainer.state.global_step == pruner.total_steps == 10  # not 20 micro-batches
    assert sparsity(trainer.model) == pytest.approx(0.5, abs=1e-3)
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["sparsity"] for record in records] == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert records[-1]["sparsity/transformer.h.0.mlp.c_fc.weight"] == 0.5


def test_what_is_saved_at_the_end_loads_into_a_plain_model_with_the_same_outputs(tmp_path: Path) -> None:
    trainer = make(tmp_path, HuggingFaceCallback(PRUNING))
    trainer.train()
    trainer.save_model(tmp_path / "end")
    plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "end").eval()
    assert not sparsify.get_masks(plain)
    tokens = texts(2)[0]["input_ids"][None]
    assert torch.equal(plain(tokens).logits, trainer.model.eval()(tokens).logits)
    assert float((plain.transformer.h[0].mlp.c_fc.weight == 0).float().mean()) == 0.5
    keys = trainer.model.state_dict().keys()
    assert "sparsify_pruner" not in keys and sum(key.endswith("_mask") for key in keys) == 8


@pytest.mark.parametrize(
    ("pruning", "precision"),
    [
        (PRUNING, {}),
        (PRUNING | {"masked_weights": "freeze", "criterion": "random"}, {"bf16": True}),
        ({"sparsity": 0.6, "schedule": {"name": "cyclic", "cycles": 2}, "after_cycles": "union"}, {"bf16": True}),
    ],
)
def test_a_killed_run_goes_on_to_the_same_masks_and_weights(
    pruning: dict[str, Any], precision: dict[str, Any], tmp_path: Path
) -> None:
    given = precision | {"save_strategy": "steps", "save_steps": 3}
    whole = make(tmp_path / "whole", HuggingFaceCallback(pruning), **given)
    whole.train()
    with pytest.raises(Killed):
        make(tmp_path / "run", HuggingFaceCallback(pruning), Kill(5), **given).train()
    after = make(tmp_path / "run", HuggingFaceCallback(pruning), model=gpt2(seed=9), **given)
    after.train(resume_from_checkpoint=True)
    state, wanted = after.model.state_dict(), whole.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert 0.4 < sparsity(after.model) < 0.61


def test_no_checkpoint_from_before_the_end_of_pruning_counts_as_the_best(tmp_path: Path) -> None:
    """The loss is made to rise, so that the first checkpoint, hardly pruned, would be the best."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    best |= {"save_steps": 2, "metric_for_best_model": "loss", "save_total_limit": 1}
    trainer = make(tmp_path, HuggingFaceCallback(PRUNING), **best)
    losses = iter(range(1, 10))
    evaluate = trainer.evaluation_loop

    def worse_each_time(*args: Any, **kwargs: Any) -> Any:
        found = evaluate(*args, **kwargs)
        found.metrics["eval_loss"] = float(next(losses))
        return found

    trainer.evaluation_loop = worse_each_time
    trainer.train()
    assert trainer.state.best_global_step == 8 and sparsity(trainer.model) == 0.5


def test_an_earlier_checkpoint_loaded_at_the_end_is_told(tmp_path: Path) -> None:
    pruning = HuggingFaceCallback(PRUNING)
    trainer = make(tmp_path, pruning, save_strategy="steps", save_steps=2)

    class LoadFirst(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            trainer._load_from_checkpoint(str(tmp_path / "checkpoint-2"))

    trainer.callback_handler.callbacks.insert(0, LoadFirst())
    with pytest.warns(SparsityWarning, match="an earlier checkpoint were loaded"):
        trainer.train()


def test_a_run_that_starts_pruned_keeps_what_is_removed(tmp_path: Path) -> None:
    model = gpt2()
    sparsify.convert(model, ignore=["transformer.h.0"])
    sparsify.Pruner(model, {"sparsity": 0.3, "schedule": "one_shot", "criterion": "random"}, total_steps=1).start()
    before = {name: mask.clone() for name, mask in sparsify.get_masks(model).items()}
    make(tmp_path, HuggingFaceCallback(PRUNING), model=model).train()
    after = sparsify.get_masks(model)
    assert after.keys() == before.keys() and sparsity(model) == 0.5  # no weight got a mask that had none
    assert all(not bool(after[name][~before[name]].any()) for name in before)
    with pytest.raises(SparsifyError, match="pruning: sparsity 0.4 is below the 0.5 that the masks remove"):
        make(tmp_path, HuggingFaceCallback(PRUNING | {"sparsity": 0.4}), model=model).train()


def test_a_run_that_ends_early_says_so(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    trainer = make(tmp_path, HuggingFaceCallback(PRUNING), Stop())
    with pytest.warns(ScheduleWarning, match="cut short at step 5: 3 of 5 updates"):
        trainer.train()


def test_loggers_get_the_sparsity_once_the_callback_is_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make(tmp_path, HuggingFaceCallback(PRUNING), report_to=["tensorboard"])
    with pytest.warns(RunWarning, match=r"tensorboard: gets no sparsity unless you call attach\(trainer\)"):
        trainer.train()
    pruning = HuggingFaceCallback(PRUNING)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "attached"))
    trainer = make(tmp_path, report_to=["tensorboard"])
    pruning.attach(trainer)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "attached"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/sparsity")] == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_criteria_get_data_and_the_loss_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="criterion 'wanda' needs data"):
        make(tmp_path, HuggingFaceCallback(PRUNING | {"criterion": "wanda"})).train()
    batch = {key: torch.stack([row[key] for row in texts(4)]) for key in ("input_ids", "labels")}
    found: dict[str, torch.Tensor] = {}
    for criterion in ("wanda", "taylor", "magnitude"):
        trainer = make(
            tmp_path, HuggingFaceCallback(PRUNING | {"criterion": criterion, "scope": "filter"}, batches=[batch])
        )
        trainer.train()
        found[criterion] = sparsify.get_masks(trainer.model)["transformer.h.0.mlp.c_fc.weight"]
        assert sparsity(trainer.model) == 0.5
    assert not torch.equal(found["wanda"], found["magnitude"]) and not torch.equal(found["taylor"], found["wanda"])


def test_what_cannot_go_on_is_refused_in_one_line(tmp_path: Path) -> None:
    given = {"save_strategy": "steps", "save_steps": 4}
    with pytest.raises(Killed):
        make(tmp_path / "dense", Kill(5), **given).train()
    with pytest.raises(SparsifyError, match="no pruner's state came with the checkpoint"):
        make(tmp_path / "dense", HuggingFaceCallback(PRUNING), **given).train(resume_from_checkpoint=True)
    with pytest.raises(Killed):
        make(tmp_path / "run", HuggingFaceCallback(PRUNING), Kill(5), **given).train()
    with pytest.raises(SparsifyError, match="total_steps 10, this pruner has 12"):
        make(tmp_path / "run", HuggingFaceCallback(PRUNING), steps=12, **given).train(resume_from_checkpoint=True)
    with warnings.catch_warnings():
        trainer = make(tmp_path / "run", **given)
        trainer.add_callback(HuggingFaceCallback(PRUNING))
        with pytest.raises(SparsifyError, match="a model that was loaded before it had masks"):
            trainer.train(resume_from_checkpoint=True)
    with pytest.raises(SparsifyError, match="HuggingFaceCallback: pruning is 0.5; it takes"):
        HuggingFaceCallback(0.5)  # type: ignore[arg-type]
    with pytest.raises(SparsifyError, match="pruning.shrink: a trainer's optimiser cannot follow"):
        HuggingFaceCallback({"sparsity": 0.5, "granularity": "unit", "shrink": True})


def test_a_model_made_by_a_function_and_one_that_is_no_pretrained_model_are_pruned(tmp_path: Path) -> None:
    pruning = HuggingFaceCallback(PRUNING)
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=10, report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no"
    )
    trainer = transformers.Trainer(args=args, model_init=lambda: gpt2(), train_dataset=texts(), callbacks=[pruning])
    trainer.train()
    assert pruning.loop.model is trainer.model and sparsity(trainer.model) == 0.5

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.inner(x) - labels).square().mean()}

    data = [{"x": row, "labels": row} for row in torch.randn(40, 8)]
    args = transformers.TrainingArguments(
        str(tmp_path / "plain"), max_steps=10, report_to="none", disable_tqdm=True, use_cpu=True, save_steps=5
    )
    trainer = transformers.Trainer(Plain(), args, train_dataset=data, callbacks=[HuggingFaceCallback(PRUNING), Kill(7)])
    with pytest.raises(Killed):
        trainer.train()
    trainer = transformers.Trainer(Plain(), args, train_dataset=data, callbacks=[HuggingFaceCallback(PRUNING)])
    trainer.train(resume_from_checkpoint=True)
    assert sparsity(trainer.model) == 0.5


def test_copies_of_a_model_carry_no_pruner_and_load_its_state(tmp_path: Path) -> None:
    pruning = HuggingFaceCallback(PRUNING)
    found: dict[str, Any] = {}

    class Copy(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                average = torch.optim.swa_utils.AveragedModel(kwargs["model"])
                found.update(live=kwargs["model"].state_dict(), average=average.module.state_dict())
                average.module.load_state_dict(found["live"])
                average.update_parameters(kwargs["model"])
                sparsify.save(kwargs["model"], tmp_path / "now.safetensors")
                torch.save(kwargs["model"], tmp_path / "whole.pt")

    with pytest.warns(ScheduleWarning, match="cut short"):  # of `save`
        make(tmp_path, pruning, Copy()).train()
    assert found["live"].keys() - found["average"].keys() == {"sparsify_pruner"}
    read = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert sparsify.get_masks(read).keys() == sparsify.get_masks(pruning.loop.model).keys()
