"""A folder for the hub: what others read in it, that it loads, and that nothing of anybody's is lost."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export import hub
from sparsify.export.save import inspect_file
from sparsify.training.recipe.read import parse_recipe
from tests.export.hub import hub_at
from tests.formats.toys import holder
from tests.random_masks import randomly_masked

RECIPE = parse_recipe({"model": "timm:test_resnet", "data": "digits", "prune": {"sparsity": 0.9}})
ABOUT = {
    "spec": "timm:test_resnet",
    "arguments": {"num_classes": 10, "drop_rate": 0.1},
    "recipe": RECIPE,
    "seeds": {"train": 1},
    "metrics": {"test_accuracy": 0.875, "step": 12000, "top5": 0.99},
    "extra": {"input_shape": [3, 32, 32]},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = sparsify.build_model("timm:test_resnet", num_classes=10, drop_rate=0.1)
    return randomly_masked(model, 0.1, ignore=["last"]).eval()


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "small"
    size = sparsify.save(network(), path, format="hub", **ABOUT)
    assert size == sum(file.stat().st_size for file in path.iterdir())
    return path


def test_the_folder_holds_three_files_and_loads_from_disk_and_from_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    expected = outputs(network())
    assert torch.equal(outputs(sparsify.load(folder)), expected)
    sparsify.save(network(), tmp_path / "plain", **ABOUT)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "plain").read_bytes()
    (tmp_path / "hub" / "me" / "small").mkdir(parents=True)
    (tmp_path / "hub" / "me" / "small" / "main").symlink_to(folder)
    with hub_at(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        assert torch.equal(outputs(sparsify.load("hf:me/small")), expected)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "layer1.0.conv1.weight.kept" in file.keys()


def test_timm_builds_the_architecture_from_the_folder(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    assert model.num_classes == 10 and model.drop_rate == 0.1
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 32, 32)
    model.load_state_dict(sparsify.load(folder, fold=True).state_dict())
    assert torch.equal(outputs(model.eval()), outputs(network()))


def test_the_config_says_what_the_file_holds(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    saved = inspect_file(folder / "model.safetensors")
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("test_resnet", 10, 96)
    assert config["model_args"] == {"drop_rate": 0.1}
    # digits are normalised in our own way, and no published weights are in it.
    assert not {"mean", "std", "crop_pct", "url", "tag", "license"} & config["pretrained_cfg"].keys()
    told = config["sparsify"]
    assert told["spec"] == "timm:test_resnet" and told["arguments"] == ABOUT["arguments"]
    assert (told["sparsity"], told["kept"], told["cut"]) == (saved.sparsity, saved.kept, False)


def test_the_card_is_one_that_the_hub_reads_and_gives_every_figure(folder: Path) -> None:
    read = ModelCard.load(folder / "README.md")
    assert read.data.library_name == "sparsify" and read.data.license is None
    assert read.data.tags == ["sparsify", "sparsity", "pruning", "timm"]
    assert read.data.pipeline_tag == "image-classification"
    [result] = read.data.eval_results
    assert (read.data.model_name, result.dataset_name, result.metric_type) == ("timm:test_resnet", "digits", "accuracy")
    assert result.metric_value == 0.875
    figures = read.text.partition("## Figures")[2]
    assert read.text.index("**Test accuracy 87.5 %** on digits") < read.text.index("## Load it")
    assert figures.index("test_accuracy") < figures.index("sparsity of the masked weights") < figures.index("top5")
    saved, text = inspect_file(folder / "model.safetensors"), read.text
    assert 'model = sparsify.load("hf:OWNER/NAME")' in text and "# [batch, 3, 32, 32]" in text
    for row in saved.rows:
        line = f"| `{row.name}` | {'x'.join(map(str, row.shape))} | {row.kept or 0:,} | "
        assert (line in text) == (row.kept is not None)
    assert f"| masked weights kept | {saved.kept:,} of {saved.masked_entries:,} |" in text
    assert "| data | digits |" in text and "| test_accuracy | 0.875 |" in text and "| step | 12,000 |" in text
    assert f"```yaml\n{RECIPE.to_yaml().strip()}\n```" in text


@pytest.mark.parametrize("data", ["cifar10", "python:Own"])
def test_no_normalisation_of_timms_is_claimed_for_images_that_it_did_not_read(tmp_path: Path, data: str) -> None:
    about = {**ABOUT, "recipe": RECIPE.to_yaml().replace("name: digits", f"name: {data}")}
    sparsify.save(network(), tmp_path / "h", format="hub", **about)
    assert "mean" not in json.loads((tmp_path / "h" / "config.json").read_text())["pretrained_cfg"]


def test_a_licence_is_told_where_the_weights_go_back_to_published_ones(tmp_path: Path) -> None:
    recipe = RECIPE.to_yaml().replace("pretrained: false", "pretrained: true").replace("name: digits", "name: torch/x")
    about = {**ABOUT, "spec": "timm:test_resnet.r160_in1k", "recipe": recipe}
    sparsify.save(network(), tmp_path / "h", format="hub", **about)
    data = ModelCard.load(tmp_path / "h" / "README.md").data
    assert (data.license, data.base_model) == ("apache-2.0", "timm/test_resnet.r160_in1k")
    assert "mean" in json.loads((tmp_path / "h" / "config.json").read_text())["pretrained_cfg"]


def test_a_model_without_a_name_and_without_masks_has_a_folder_too(tmp_path: Path) -> None:
    sparsify.save(holder((8, 8)), tmp_path / "a", format="hub")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["architecture"] == "Holder"
    assert 'sparsify.load("hf:OWNER/NAME", model)' in (tmp_path / "a" / "README.md").read_text()
    sparsify.save(nn.Linear(2, 2), tmp_path / "b", format="hub", dtype="float16")
    assert "| values are rounded to | float16 |" in (tmp_path / "b" / "README.md").read_text()
    assert "masked" not in (tmp_path / "b" / "README.md").read_text().partition("## Figures")[2]


@pytest.mark.parametrize("recipe", ["model: timm:x\ndata: digits", "- 1", "a: [", "as on Tuesday", ""])
def test_a_recipe_may_be_any_text(tmp_path: Path, recipe: str) -> None:
    metrics = {"per class": [0.5, 1], "done": True, "note": "none", "images": 1500, "loss": 0.123456789}
    sparsify.save(nn.Linear(2, 2), tmp_path / "a", format="hub", spec="timm:x", recipe=recipe, metrics=metrics)
    text = (tmp_path / "a" / "README.md").read_text()
    assert (f"```yaml\n{recipe}\n```" in text) == bool(recipe) and ("| data | digits |" in text) == ("digits" in recipe)
    for row in ("per class | [0.5, 1]", "done | true", 'note | "none"', "images | 1,500", "loss | 0.123457"):
        assert f"| {row} |" in text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_folder_and_an_older_one_as_it_was_written_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    sparsify.save(nn.Linear(2, 2), tmp_path / "a", format="hub")
    sparsify.save(nn.Linear(3, 3), tmp_path / "a", format="hub")
    assert sparsify.load(tmp_path / "a", nn.Linear(3, 3)) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("change", ["README.md", "config.json", "model.safetensors", ".git/HEAD", "none of ours"])
def test_a_folder_in_which_something_is_somebody_s_own_is_left_alone(tmp_path: Path, change: str) -> None:
    sparsify.save(nn.Linear(2, 2), tmp_path / "a", format="hub")
    changed = tmp_path / "a" / change
    changed.parent.mkdir(exist_ok=True)
    changed.write_bytes((changed.read_bytes() if changed.exists() else b"") + b"mine\n")
    if change == "model.safetensors":
        sparsify.save(nn.Linear(4, 4), changed)
    if change == "none of ours":
        for path in [path for path in (tmp_path / "a").iterdir() if path != changed]:
            path.unlink()
    before = contents(tmp_path)
    with pytest.raises(SparsifyError, match="cannot write .*a: the folder exists and is not empty") as caught:
        sparsify.save(nn.Linear(3, 3), tmp_path / "a", format="hub")
    assert "\n" not in str(caught.value) and contents(tmp_path) == before


@pytest.mark.parametrize("older", [True, False])
def test_whatever_goes_wrong_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    if older:
        sparsify.save(nn.Linear(2, 2), tmp_path / "a", format="hub")
    before = contents(tmp_path)

    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(hub, "card", broken)
    with pytest.raises(ZeroDivisionError):
        sparsify.save(nn.Linear(3, 3), tmp_path / "a", format="hub")
    assert contents(tmp_path) == before and (tmp_path / "a").exists() == older
    assert len(list(tmp_path.iterdir())) == older


def test_what_is_put_into_an_older_folder_at_the_last_moment_is_not_lost(tmp_path: Path) -> None:
    from sparsify.formats.io.atomic_folder import atomic_folder

    sparsify.save(nn.Linear(2, 2), tmp_path / "a", format="hub")
    with pytest.raises(SparsifyError, match="not empty"), atomic_folder(tmp_path / "a", hub.is_as_written) as new:
        (new / "x").touch()
        (tmp_path / "a" / "mine").touch()
    assert (tmp_path / "a" / "mine").exists() and (tmp_path / "a" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_in_the_way_and_a_missing_parent_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(SparsifyError, match="it exists and is not a folder"):
        sparsify.save(nn.Linear(3, 3), tmp_path / "a", format="hub")
    with pytest.raises(SparsifyError, match="there is no folder"):
        sparsify.save(nn.Linear(3, 3), tmp_path / "b" / "c", format="hub")
