"""A run's folder as records, against what the folder holds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.formats.model.masks import load_masks
from sparsify.report import read_layers, read_run
from sparsify.report.bench_results import BenchResult, Timing, add_bench_result

from .conftest import Derive


def test_a_run_is_what_its_folder_holds(finished: Path) -> None:
    run = read_run(finished)
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert [record["step"] for record in run.records] == [json.loads(line)["step"] for line in lines]
    assert run.accuracy == json.loads(lines[-1])["test_accuracy"] and run.seed == 1
    assert [*run.masks] == [1, 2, 3] and run.recipe.name == "small" and run.bench == ()
    [conditions] = run.conditions
    assert conditions["torch"] == str(torch.__version__) and conditions["step"] == "0"
    assert conditions["threads"] == str(torch.get_num_threads())
    kept = sum(int(mask.sum()) for mask in load_masks(finished / "model.safetensors").values())
    assert run.file.kept == kept


def test_multiply_adds_are_those_counted_by_hooks(finished: Path) -> None:
    layers = read_layers(read_run(finished))
    model, counted = sparsify.load(finished / "model.safetensors").eval(), dict[str, int]()

    def count(name: str) -> Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(module: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
            positions = output[0, 0].numel() if output.dim() == 4 else 1
            counted[f"{name}.weight"] = module.weight.numel() * positions

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count(name))
    model(torch.zeros(1, 3, 8, 8))
    assert {layer.name: layer.multiply_adds for layer in layers.layers}.items() <= counted.items()
    assert layers.multiply_adds == sum(counted.values()) and len(layers.layers) == len(counted) - 1
    assert layers.parameters == sum(parameter.numel() for parameter in model.parameters())
    masks = sparsify.get_masks(model)
    assert {layer.name: layer.kept for layer in layers.layers} == {n: int(mask.sum()) for n, mask in masks.items()}
    assert layers.kept_parameters == layers.parameters - sum(int((~mask).sum()) for mask in masks.values())
    assert layers.notes == () and layers.channels == sum(mask.shape[0] for mask in masks.values())


def test_dead_channels_are_counted(derive: Derive) -> None:
    folder = derive("dead")
    model = sparsify.load(folder / "model.safetensors")
    masks = sparsify.get_masks(model)
    name = "stages.0.0.conv1.weight"
    masks[name][:2] = False
    for key in ("weight", "bias"):
        # Two channels whose norm's bias is negative: a ReLU makes them zero, whatever the input.
        model.get_submodule("stages.0.0").bn1.get_parameter(key).data[:2] = -1.0
    sparsify.set_masks(model, masks)
    about = {"spec": "cifar:resnet20", "arguments": {"widths": [4, 4, 8], "num_classes": 10}}
    sparsify.save(model, folder / "model.safetensors", **about, extra={"input_shape": [3, 8, 8]})
    found = {layer.name: layer.dead for layer in read_layers(read_run(folder)).layers}
    dead = sparsify.analyse(model, torch.zeros(1, 3, 8, 8))
    groups = dead.labels[name][0]
    assert found[name] == 2 == int(dead.dead[groups[groups >= 0]].sum())


def test_a_cut_model_is_no_dense_one(derive: Derive) -> None:
    folder = derive("small")
    model, example = sparsify.build_model("cifar:resnet20", widths=[4, 4, 8], num_classes=10), torch.zeros(1, 3, 8, 8)
    before = sum(value.numel() for value in model.parameters())
    sparsify.convert(model, ignore=["last"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, total_steps=1, example_input=example).start()
    cut = sparsify.shrink(model, example)
    about = {"spec": "cifar:resnet20", "arguments": {"widths": [4, 4, 8], "num_classes": 10}}
    sparsify.save(cut.model, folder / "model.safetensors", **about, extra={"input_shape": [3, 8, 8]})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "shrunk": {"multiply_adds": [*cut.multiply_adds]}})
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    layers = read_layers(run)
    assert cut.multiply_adds == (layers.multiply_adds, layers.kept_multiply_adds)
    after = sum(value.numel() for value in cut.model.parameters())
    assert layers.kept_parameters == after and before <= layers.parameters < 1.1 * before  # buffers count as cut
    assert 0.3 < run.sparsity < 0.9


def test_a_model_that_only_python_can_build_has_no_costs(derive: Derive) -> None:
    folder = derive("own")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    sparsify.convert(model)
    sparsify.save(model, folder / "model.safetensors")
    layers = read_layers(read_run(folder))
    assert [layer.parameters for layer in layers.layers] == [108, 1440] and layers.multiply_adds is None
    assert layers.notes == ("no multiply-adds and dead channels: the model is not named, which only Python can build",)


def test_bench_results_are_kept_and_the_newest_of_a_kind_counts(derive: Derive) -> None:
    folder = derive("timed")
    for seconds, shape in ((1.0, (1, 3, 8, 8)), (2.0, (4, 3, 8, 8)), (3.0, (1, 3, 8, 8))):
        timing = Timing("sparsify engine", seconds, seconds / 2, seconds * 2)
        add_bench_result(folder, BenchResult(shape, 1, "a processor", {"torch": "2"}, "2026-01-01", (timing,)))
    found = read_run(folder).bench
    assert [(one.shape[0], one.timings[0].median) for one in found] == [(4, 2.0), (1, 3.0)]
    assert isinstance(found[0].timings[0], Timing) and found[0].shape == (4, 3, 8, 8)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no recipe": (lambda run: (run / "recipe.yaml").unlink(), "not a run: there is no recipe.yaml in it"),
    "recipe": (lambda run: (run / "recipe.yaml").write_text("model: ["), "recipe.yaml"),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "a run without metrics: there is no metrics.jsonl"),
    "empty metrics": (
        lambda run: (run / "metrics.jsonl").write_text(""),
        "a run without metrics: metrics.jsonl is empty",
    ),
    "cut metrics": (lambda run: _cut(run / "metrics.jsonl"), r"metrics.jsonl:15: damaged"),
    "other metrics": (lambda run: (run / "metrics.jsonl").write_text("3\n"), "metrics.jsonl:1: damaged"),
    "binary metrics": (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"), "metrics.jsonl:1: damaged"),
    "not finished": (lambda run: (run / "model.safetensors").unlink(), "is not finished; go on with"),
    "model": (lambda run: _cut(run / "model.safetensors"), "model.safetensors"),
    "conditions": (lambda run: (run / "conditions.json").write_text("{}"), "conditions.json: damaged"),
    "bench": (lambda run: (run / "bench.json").write_text('[{"a": 1}]'), "bench.json: damaged"),
    "bench text": (lambda run: (run / "bench.json").write_text("["), "bench.json: damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_one_line(name: str, derive: Derive) -> None:
    damage, line = DAMAGES[name]
    folder = derive("damaged")
    damage(folder)
    with pytest.raises(SparsifyError, match=line) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or name == "recipe"


def test_no_such_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="nothing: no such run"):
        read_run(tmp_path / "nothing")
