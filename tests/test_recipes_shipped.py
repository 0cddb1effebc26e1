from pathlib import Path

import pytest

from sparsify.pruning.schedules import update_plan
from sparsify.pruning.settings.prune import CriterionSettings
from sparsify.training.recipe.lr_schedules import learning_rate_factor
from sparsify.training.recipe.read import Recipe, read_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
GENERAL = ("union_mask", "linear_ramp", "gradual", "one_shot", "snip", "nm", "3sp", "cyclic", "dense")
STUDY = [f"{model}_{kind}" for model in ("resnet32", "vgg19") for kind in ("dense", "vanilla", "union")]
BATCHES = 391  # 50,000 images, 128 at a time
TOTAL = 78_200


def study(name: str) -> Recipe:
    return read_recipe(RECIPES / "cifar100" / f"{name}.yaml")


def test_every_recipe_is_known_here() -> None:
    found = {path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml")}
    assert found == {*GENERAL, *(f"cifar100/{name}" for name in STUDY)}


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("epochs", [1, 40])
def test_general_recipe_fits_any_model_and_length(name: str, epochs: int) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml", ["model.name=timm:vgg19_bn", f"train.epochs={epochs}"])
    if recipe.prune is None:
        return
    updates = update_plan(recipe.prune, 12 * epochs, 12)
    last = updates[-1]
    assert last.step <= 12 * epochs
    # The union's cycle ends at the target wherever the union was.
    assert last.sparsity is None or float(last.sparsity) == recipe.prune.sparsity
    assert (last.sparsity is None) == (recipe.prune.after_cycles == "union")


# A network this narrow loses filters under SNIP, which prunes over all layers together.
@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
@pytest.mark.parametrize("name", GENERAL)
def test_general_recipe_runs_as_it_is_but_shorter(name: str, tmp_path: Path) -> None:
    from sparsify.training.run.train import train

    overrides = ["train.epochs=1", "model.arguments={widths: [16, 16, 16]}", "train.device=cpu"]
    recipe = read_recipe(RECIPES / f"{name}.yaml", overrides)
    result = train(recipe, out=tmp_path / "run")
    assert 0 <= result.metrics["test_accuracy"] <= 1
    if recipe.prune is not None:
        # Filters hold whole weights: 129 of 144 removed are 0.896, 14 of 16 are 0.875.
        assert result.metrics["sparsity"] == pytest.approx(recipe.prune.sparsity, abs=0.01)


def test_union_cycles_end_where_the_learning_rate_is_near_zero() -> None:
    recipe = read_recipe(RECIPES / "union_mask.yaml")
    assert recipe.prune is not None
    total = 12 * recipe.train.epochs
    factor = learning_rate_factor(recipe.train.lr_schedule, total, 12)
    saved = [update.step for update in update_plan(recipe.prune, total, 12) if update.event == "save"]
    assert saved == [total // 5, 2 * total // 5, 3 * total // 5]
    assert all(factor(step - 1) < 0.001 < 0.9 < factor(step) for step in saved)


def test_cyclic_differs_from_union_in_what_comes_after_its_cycles_alone() -> None:
    union, cyclic = (read_recipe(RECIPES / f"{name}.yaml") for name in ("union_mask", "cyclic"))
    assert union.prune is not None and cyclic.prune is not None
    assert cyclic.prune.after_cycles == "last"
    assert union.prune.model_copy(update={"after_cycles": "last"}) == cyclic.prune
    assert union.train == cyclic.train


@pytest.mark.parametrize("name", STUDY)
def test_study_trains_as_published(name: str) -> None:
    recipe = study(name)
    assert recipe.model.name == {"resnet32": "cifar:resnet32", "vgg19": "cifar:vgg19_bn"}[name.split("_")[0]]
    data, optimizer = recipe.data, recipe.train.optimizer
    assert (data.name, data.batch_size, data.drop_last) == ("cifar100", 128, False)
    assert (data.crop_padding, data.padding_mode, data.flip) == (4, "zero", True)
    assert recipe.train.epochs * BATCHES == TOTAL
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, True)
    assert (optimizer.weight_decay, optimizer.weight_decay_exclude) == (5e-4, "none")
    assert recipe.train.precision == "no" and recipe.train.clip_grad_norm is None and recipe.train.accumulate == 1


@pytest.mark.parametrize("model", ["resnet32", "vgg19"])
def test_study_union_has_the_published_cycles_and_learning_rate(model: str) -> None:
    recipe = study(f"{model}_union")
    assert recipe.prune is not None
    assert (recipe.prune.scope, recipe.prune.criterion) == ("filter", CriterionSettings(name="magnitude"))
    updates = update_plan(recipe.prune, TOTAL, BATCHES)
    assert [update.step for update in updates if update.event == "reset"] == list(range(0, 65_001, 5_000))
    assert [update.step for update in updates if update.event == "save"] == list(range(5_000, 65_001, 5_000))
    assert [update.step for update in updates if update.event == "union"] == [69_290]
    assert updates[-1].step == 74_290
    assert {update.step for update in updates} == {*range(0, 74_290, 100), 69_290, 74_290}
    [half] = [update for update in updates if update.step == 12_500]
    assert float(half.sparsity or 0) == pytest.approx(0.9 * 0.5**0.5)
    factor = learning_rate_factor(recipe.train.lr_schedule, TOTAL, BATCHES)
    lr = recipe.train.optimizer.lr
    expected = [0, 0.05, 0.1, 0.05, 0, 0.1, 0.036]
    assert [lr * factor(at) for at in (0, 2_500, 5_000, 7_500, 10_000, 75_000, TOTAL)] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["dense", "vanilla"])
@pytest.mark.parametrize("model", ["resnet32", "vgg19"])
def test_study_baseline_has_the_published_learning_rate_and_ramp(model: str, kind: str) -> None:
    recipe = study(f"{model}_{kind}")
    factor = learning_rate_factor(recipe.train.lr_schedule, TOTAL, BATCHES)
    found = [recipe.train.optimizer.lr * factor(at) for at in (0, 39_100, 54_740, 70_380, TOTAL)]
    assert found == pytest.approx([0.05, 0.05, 0.02525, 0.0005, 0.0005])
    if kind == "dense":
        assert recipe.prune is None
        return
    assert recipe.prune is not None and recipe.prune.scope == "filter"
    updates = {update.step: float(update.sparsity or 0) for update in update_plan(recipe.prune, TOTAL, BATCHES)}
    found = [updates[step] for step in (0, 19_500, 39_100)]
    assert found == pytest.approx([0, 0.9 * 19_500 / 39_100, 0.9])
    assert max(updates) == 39_100


@pytest.mark.parametrize(
    ("name", "dense"),
    [
        ("resnet32_union", {"stages.1.0.shortcut.0.weight", "stages.2.0.shortcut.0.weight", "fc.weight"}),
        ("vgg19_union", {"classifier.fc3.weight"}),
    ],
)
def test_study_masks_every_layer_but_the_published_ones(name: str, dense: set[str]) -> None:
    from sparsify.models import build_model
    from sparsify.surgery.conversion.convert import convert

    recipe = study(name)
    assert recipe.prune is not None
    model = build_model(recipe.model.name, num_classes=100)
    weights = {key for key, value in model.named_parameters() if value.ndim > 1}
    report = convert(model, ignore=recipe.prune.ignore)
    assert weights - set(report.masked) == dense
