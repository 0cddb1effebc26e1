"""The commands that do something, on a tiny model and the embedded digits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparsify as library
from tests.cli.conftest import Outcome

RECIPE = Path(__file__).parents[2] / "recipes" / "union_mask.yaml"
SHORT = ["--model", "timm:test_resnet", "--device", "cpu", "--set", "data.batch_size=500", "--set", "train.epochs=4"]
FEW = [*SHORT, "--set", "prune.every=1it", "--set", "prune.sparsity=0.8", "--set", "prune.scope=filter"]
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    from cli.train import _merged
    from sparsify.training.run.train import train

    folder = tmp_path_factory.mktemp("runs") / "a"
    overrides = [*FEW[5::2]]
    train(_merged(str(RECIPE), {"model": "timm:test_resnet", "device": "cpu"}, overrides), out=folder)
    return folder


def test_train_shows_masks_progress_layers_accuracy_size_and_what_next(sparsify: Run, tmp_path: Path) -> None:
    code, out, err = sparsify("train", RECIPE, *FEW, "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    assert "timm:test_resnet: 373,658 parameters, on cpu" in out
    assert "no mask on fc.weight: ignored by 'last'" in out
    assert "verified: same bits in eval mode, same bits in train mode, 15 of 15 masks live" in out
    lines = out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("verified") and str(tmp_path) not in line) <= 90
    [last] = [line for line in lines if line.startswith("epoch 4/4")]
    assert "loss" in last and "acc" in last and "test" in last and "sparsity 80.0 %" in last
    [row] = [line.split() for line in lines if line.startswith("layer2.0.conv2.weight")]
    assert row == ["layer2.0.conv2.weight", "48x48x3x3", "4,176", "79.9", "%"]  # 48 filters of 432 - 345
    assert "80.0 % requested" in out and "test accuracy" in out and "of the dense 1.5 MB" in out
    for command in ("export", "bench", "predict"):
        assert any(line.startswith(f"  sparsify {command} {tmp_path / 'a'}") for line in lines)
    assert not any(line.startswith("  sparsify eval") for line in lines)  # its accuracy is shown already


def test_train_refuses_an_existing_run_and_overwrite_replaces_it(sparsify: Run, trained: Path, tmp_path: Path) -> None:
    code, out, err = sparsify("train", RECIPE, *FEW, "--out", trained)
    assert (code, out) == (2, "") and "--resume" in err and "--overwrite" in err and err.count("\n") == 1
    sparsify("train", RECIPE, *FEW, "--out", tmp_path / "b", "--set", "train.epochs=1", "--set", "prune=null")
    assert sparsify("train", RECIPE, *FEW, "--out", tmp_path / "b", "--overwrite").code == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 6, 9, 10, 12]  # every tenth and the end of each epoch


def test_a_run_stopped_before_it_began_points_at_no_older_one(
    sparsify: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsify.training.run import train as run

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", stopped)
    began = sparsify("train", "recipes/union_mask.yaml", "--out", trained, "--overwrite")
    assert (began.code, began.err) == (130, "sparsify: stopped\n")
    resumed = sparsify("train", "--resume", trained)
    assert (resumed.code, resumed.err) == (130, f"sparsify: stopped; go on with: sparsify train --resume {trained}\n")


def test_resume_of_a_finished_run_shows_it_again(sparsify: Run, trained: Path) -> None:
    before = {name: tensor.clone() for name, tensor in load_file(trained / "model.safetensors").items()}
    code, out, _ = sparsify("train", "--resume", trained)
    assert code == 0 and "test accuracy" in out
    after = load_file(trained / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_dry_run_shows_every_update_and_builds_nothing(
    sparsify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = sparsify("train", RECIPE, *FEW, "--dry-run")
    assert (code, err) == (0, "")
    assert "12 steps: 4 epochs of 3" in out
    rows = [line.split() for line in out.partition("what")[2].splitlines()[1:]]
    # Pruning ends at step 0.8 * 12 = 10, so cycles end at 2.5, 5, 7.5 and 10, a half rounded up; each at the target.
    assert [row[0] for row in rows if "save" in row] == ["3", "5", "8"]
    assert [row[3] for row in rows if "save" in row] == ["80.0"] * 3
    assert rows.pop()[0] == "about"  # the time of a run
    assert rows[-1][0] == "10" and [row[0] for row in rows if row[-3:] == ["of", "saved", "masks"]] == ["8"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_the_folder_that_its_run_would_refuse(
    sparsify: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsify.training.folder.run_folder import default_folder
    from sparsify.training.recipe.read import read_recipe

    monkeypatch.chdir(tmp_path)
    folder = default_folder(read_recipe(RECIPE), ["train.epochs=3"])
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    for more in ([], ["--dry-run"]):
        code, out, err = sparsify("train", RECIPE, "--set", "train.epochs=3", *more)
        assert (code, out) == (2, "") and err.startswith(f"sparsify: {folder}: already holds a run")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["granularity=2:4", "sparsity=0.5"], "prune 50.0 % of the weights, 2:4, by magnitude, scope layer: 1 update"),
        (["granularity=4x1", "sparsity=0.3"], "prune 30.0 % of the 4x1 blocks by magnitude"),
        (["granularity=unit", "sparsity=0.3"], "prune 30.0 % of the units by magnitude"),
        (["granularity=unit", "sparsity=0.3", "of=flops", "scope=global"], "of the multiply-adds, in whole units, by"),
    ],
)
def test_dry_run_tells_what_the_sparsity_is_a_fraction_of(sparsify: Run, settings: list[str], told: str) -> None:
    given = [word for setting in ["scope=layer", *settings] for word in ("--set", f"prune.{setting}")]
    shown = sparsify("train", RECIPE.with_name("one_shot.yaml"), *given, "--dry-run").out
    assert told in " ".join(shown.split())


def test_export_sparse_and_dense_hold_the_same_weights(sparsify: Run, trained: Path, tmp_path: Path) -> None:
    code, out, err = sparsify("export", trained, "--out", tmp_path / "s.safetensors")
    assert (code, err) == (0, "") and "% of the dense 1.5 MB" in out
    assert (
        sparsify("export", tmp_path / "s.safetensors", "--out", tmp_path / "d.safetensors", "--format", "dense").code
        == 0
    )
    plain = library.load(tmp_path / "s.safetensors", fold=True).state_dict()
    dense = load_file(tmp_path / "d.safetensors")
    assert plain.keys() == dense.keys() and all(torch.equal(plain[key], dense[key]) for key in plain)
    assert (tmp_path / "s.safetensors").stat().st_size < 0.4 * (tmp_path / "d.safetensors").stat().st_size


def test_export_casts(sparsify: Run, trained: Path, tmp_path: Path) -> None:
    args = ["export", trained, "--out", tmp_path / "h.safetensors", "--format", "dense", "--dtype", "float16"]
    assert sparsify(*args).code == 0
    assert load_file(tmp_path / "h.safetensors")["fc.weight"].dtype == torch.float16


@pytest.mark.parametrize("option", [["--format", "spares"], ["--dtype", "float12"]])
def test_export_in_an_unknown_way_is_one_line_and_leaves_no_file(
    sparsify: Run, trained: Path, tmp_path: Path, option: list[str]
) -> None:
    code, out, err = sparsify("export", trained, "--out", tmp_path / "x", *option)
    assert (code, out) == (2, "") and err.count("\n") == 1 and option[1] in err
    assert list(tmp_path.iterdir()) == []


def test_eval_finds_the_accuracy_the_run_ended_with(sparsify: Run, trained: Path) -> None:
    ended = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    code, out, err = sparsify("eval", trained, "--device", "cpu")
    assert (code, err) == (0, "")
    assert f"accuracy {100 * ended:.1f} %" in out and "on digits (297 images)" in out


def test_eval_with_data_of_more_classes_is_one_line(sparsify: Run, trained: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for name in "abcdefghijkl":
        (tmp_path / "validation" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        for part in ("train", "validation"):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / part / name / "0.png")
    code, _, err = sparsify("eval", trained, "--data", f"folder:{tmp_path}", "--device", "cpu")
    assert code == 2 and err.count("\n") == 1 and "10 outputs" in err and "12 classes" in err


def test_inspect_lists_layers_and_totals(sparsify: Run, trained: Path) -> None:
    code, out, err = sparsify("inspect", trained)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "layer4.0.conv1.weight" in out and "96x192x3x3" in out and "of 370,608 masked weights kept" in out
    assert "encoding  bits/limit" in out and "bits for each of them, 1.0" in out


def test_inspect_json_is_json(sparsify: Run, trained: Path) -> None:
    summary = json.loads(sparsify("inspect", trained, "--json").out)
    assert summary["metadata"]["spec"] == "timm:test_resnet" and summary["masked_entries"] == 370608


@pytest.mark.parametrize("what", [["--model", "timm:test_resnet"], []])
def test_inspect_prints_the_graph_with_masked_operations(sparsify: Run, trained: Path, what: list[str]) -> None:
    code, out, _ = sparsify("inspect", *(what or [str(trained)]), "--graph")
    assert code == 0 and "masked_conv2d" in out and "layer4.0.conv1.weight_mask" in out


def test_inspect_a_model_lists_what_can_be_masked(sparsify: Run) -> None:
    code, out, _ = sparsify("inspect", "--model", "timm:test_resnet")
    assert code == 0 and "masks: 16 weights" in out and "fc.weight" in out


def test_convert_prunes_a_checkpoint_and_says_what_was_verified(sparsify: Run, trained: Path, tmp_path: Path) -> None:
    sparsify("export", trained, "--out", tmp_path / "plain.safetensors", "--format", "dense")
    weights = load_file(tmp_path / "plain.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "w.pt")
    args = [
        "--model",
        "timm:test_resnet",
        "--sparsity",
        "0.9",
        "--scope",
        "global",
        "--ignore",
        "last",
        "--image-size",
        "32",
    ]
    code, out, err = sparsify("convert", tmp_path / "w.pt", *args, "--out", tmp_path / "m.safetensors")
    assert (code, err) == (0, "")
    assert "verified: same bits" in out and "90.0 % of the masked weights removed" in out
    model = library.load(tmp_path / "m.safetensors")
    assert model.get_parameter("fc.weight").shape == (10, 96)  # the checkpoint's head, not the model's own
    masks = torch.cat([mask.flatten() for mask in library.get_masks(model).values()])
    assert int((~masks).sum()) == 370608 * 9 // 10


def test_convert_of_weights_that_do_not_fit_lists_the_keys(sparsify: Run, tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    args = ["--model", "timm:test_resnet", "--out", tmp_path / "m.safetensors"]
    code, _, err = sparsify("convert", tmp_path / "other.safetensors", *args)
    assert code == 2 and err.count("\n") == 1 and "unexpected: conv.weight" in err
    assert not (tmp_path / "m.safetensors").exists()


def test_units_are_pruned_shrunk_and_loaded_from_the_file_alone(sparsify: Run, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    code, out_text, _ = sparsify(
        "convert", "--model", "cifar:resnet20", "--granularity", "unit", "--sparsity", "0.5", "--shrink", "--out", out
    )
    assert code == 0
    assert "50.0 % of the units" in out_text and "channel groups are gone" in out_text
    assert ", 0 dead before)" in out_text
    small = library.load(out)
    whole = library.build_model("cifar:resnet20")
    count = [sum(parameter.numel() for parameter in model.parameters()) for model in (small, whole)]
    assert count[0] < 0.3 * count[1]
    shown = sparsify("inspect", out)
    assert "128x64x1x1" in shown.out  # the original shape of a cut weight


@pytest.mark.parametrize(
    ("granularity", "sparsity", "told"),
    [
        ("2:4", None, "note: left dense, with fewer than 4 inputs to a unit: conv1.weight"),
        ("4x1", 0.75, "blocks: 202,818 of 270,424 removed, 75.0 % of the blocks (75.0 % requested)"),
    ],
)
@pytest.mark.filterwarnings("ignore:filters lost all their weights")
def test_patterns_and_blocks_are_pruned_by_their_short_forms(
    sparsify: Run, tmp_path: Path, granularity: str, sparsity: float | None, told: str
) -> None:
    out = tmp_path / "masked.safetensors"
    given = [] if sparsity is None else ["--sparsity", str(sparsity)]
    code, text, _ = sparsify("convert", "--model", "cifar:resnet20", "--granularity", granularity, *given, "--out", out)
    assert code == 0 and told in text
    encodings = {row["name"]: row["encoding"] for row in json.loads(sparsify("inspect", out, "--json").out)["rows"]}
    assert (encodings["fc.weight"] == "n:m") == (granularity == "2:4")


@pytest.mark.filterwarnings("ignore:filters lost all their weights")
def test_a_masked_file_is_shrunk_on_the_way_out(sparsify: Run, tmp_path: Path) -> None:
    masked, small = tmp_path / "masked.safetensors", tmp_path / "small.safetensors"
    assert sparsify("convert", "--model", "cifar:resnet20", "--sparsity", "0.99", "--out", masked).code == 0
    code, out_text, _ = sparsify("export", masked, "--shrink", "--round-to", "4", "--out", small)
    assert code == 0
    x = torch.randn(2, 3, 32, 32)
    whole, cut = library.load(masked), library.load(small)
    assert torch.allclose(whole(x), cut(x), atol=1e-5)
    for name, weight in library.build_model("cifar:resnet20").state_dict().items():
        if name in cut.state_dict() and weight.dim() == 4 and name != "conv1.weight":
            assert cut.state_dict()[name].shape[1] % 4 == 0
    assert library.get_masks(cut)


def test_a_size_that_a_model_refuses_is_told_by_its_option(tmp_path: Path, sparsify: Callable[..., Outcome]) -> None:
    model = ["--model", "timm:test_vit", "--image-size", "50"]
    for command in (["convert", *model, "--out", tmp_path / "a.safetensors"], ["bench", *model]):
        code, _, err = sparsify(*command)
        assert code == 2 and err.startswith("sparsify: --image-size: the model takes no image of 50 pixels")
    assert not any(tmp_path.iterdir())
