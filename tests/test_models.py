import logging
import subprocess
import sys
import warnings
from textwrap import dedent

import pytest
import torch
from torch import nn

from sparsify.cifar import CIFAR_MODELS
from sparsify.errors import RunError, SparsifyError
from sparsify.models import CIFAR_NAMES, build_model, check_model_name, list_models


def shapes(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(module.weight.shape) for name, module in model.named_modules() if isinstance(module, kind)}  # type: ignore[arg-type]


def test_names_are_those_of_the_libraries() -> None:
    import timm
    import torchvision

    names = list_models()
    assert names == sorted(set(names))
    assert {name for name in names if name.startswith("timm:")} == {f"timm:{name}" for name in timm.list_models()}
    known = {f"torchvision:{name}" for name in torchvision.models.list_models()}
    assert {name for name in names if name.startswith("torchvision:")} == known
    assert [name for name in names if name.startswith("cifar:")] == [f"cifar:{name}" for name in CIFAR_MODELS]
    assert set(CIFAR_NAMES) == set(CIFAR_MODELS)


def test_optimiser_names_are_those_of_timm() -> None:
    from timm.optim import list_optimizers

    from sparsify.training.recipe.lookups import optimizer_names

    assert set(optimizer_names()) == set(list_optimizers())


def test_names_are_listed_fast_and_without_torch() -> None:
    code = dedent("""\
        import sys
        from sparsify.models import list_models
        assert len(list_models("resnet*")) > 20
        assert len(sys.modules) < 200, "about 80 are needed, torch would be 1,500"
        assert not {"torch", "timm", "torchvision"} & set(sys.modules)
        """)
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("cifar:*", [f"cifar:{name}" for name in sorted(CIFAR_NAMES)]),
        ("vgg19_bn", ["cifar:vgg19_bn", "timm:vgg19_bn", "torchvision:vgg19_bn"]),
        ("resnet5?", ["cifar:resnet56", "timm:resnet50", "torchvision:resnet50"]),
        ("nothing_like_it", []),
    ],
)
def test_pattern_is_a_glob_or_a_part_of_the_name(pattern: str, expected: list[str]) -> None:
    found = [name for name in list_models(pattern) if not name.endswith(("c", "d", "s", "t"))]
    assert found == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet20",
            "model 'resnet20' has no prefix (timm:, torchvision:, transformers: or cifar:); did you mean 'cifar:resn",
        ),
        (
            "vgg11_bn",
            "transformers: or cifar:); did you mean 'timm:vgg11_bn' or 'torchvision:vgg11_bn'?",
        ),
        ("convnextt_atto", "did you mean 'timm:convnext_atto'?"),
        ("timm:resnt50", "unknown model 'timm:resnt50'; did you mean 'timm:resnet50'?"),
        ("cifar:resnet21", "unknown model 'cifar:resnet21'; did you mean"),
        ("torchvision:vit_tiny_patch16_224", "did you mean 'timm:vit_tiny_patch16_224'?"),
        (
            "tim:resnet50",
            "unknown model prefix 'tim:'; did you mean 'timm:'? (known: cifar:, timm:, torchvision:, transformers:)",
        ),
        ("", "model '' has no prefix"),
    ],
)
def test_wrong_name_is_one_line_with_the_likely_intention(name: str, message: str) -> None:
    with pytest.raises(SparsifyError) as caught:
        check_model_name(name, where="recipe.yaml:3: model.name")
    assert str(caught.value).startswith("recipe.yaml:3: model.name: ") and message in str(caught.value)


@pytest.mark.parametrize("name", ["timm:resnet50.a1_in1k", "timm:hf-hub:owner/net", "cifar:vgg19_bn"])
def test_right_name_passes(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize("name", ["cifar:resnet20", "timm:test_resnet", "torchvision:squeezenet1_1"])
def test_model_has_the_classes_asked_for(name: str) -> None:
    model = build_model(name, num_classes=7)
    assert model.training
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_resnet32_is_that_of_the_study() -> None:
    model = build_model("cifar:resnet32", num_classes=100)
    convs = shapes(model, nn.Conv2d)
    assert len([name for name in convs if "shortcut" not in name]) == 31
    assert convs["conv1"] == (32, 3, 3, 3)
    assert {name: shape for name, shape in convs.items() if "shortcut" in name} == {
        "stages.1.0.shortcut.0": (64, 32, 1, 1),
        "stages.2.0.shortcut.0": (128, 64, 1, 1),
    }
    assert convs["stages.2.4.conv2"] == (128, 128, 3, 3)
    assert shapes(model, nn.Linear) == {"fc": (100, 128)}
    # 3x3 weights 864 + 10 * 9,216 + 18,432 + 9 * 36,864 + 73,728 + 9 * 147,456 = 1,844,064; shortcuts 2,048 + 8,192;
    # batch norm twice 32 * 11 + 64 * 10 + 128 * 10 = 2,272 and 192 for the shortcuts; fc 12,900.
    assert sum(p.numel() for p in model.parameters()) == 1_844_064 + 10_240 + 2 * (2_272 + 192) + 12_900
    assert [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.bias is not None] == []


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet32", 32), ("resnet56", 56)])
def test_resnets_have_the_layers_of_their_name(name: str, layers: int) -> None:
    model = build_model(f"cifar:{name}")
    weights = [one for one in shapes(model, (nn.Conv2d, nn.Linear)) if "shortcut" not in one]
    assert len(weights) == layers


def test_vgg19_is_that_of_the_study() -> None:
    model = build_model("cifar:vgg19_bn", num_classes=100)
    widths = [shape[0] for shape in shapes(model, nn.Conv2d).values()]
    assert widths == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [tuple(one.weight.shape) for one in linear] == [(512, 512), (512, 512), (100, 512)]
    assert [one.bias is not None for one in linear] == [False, False, True]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)


def test_weights_start_xavier_normal() -> None:
    torch.manual_seed(0)
    model = build_model("cifar:resnet32")
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 9000:
            out, into, height, width = module.weight.shape
            expected = (2 / ((out + into) * height * width)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_build_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model(f"torchvision:{name}", num_classes=5)
    assert model.fc.out_features == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "deeplabv3_mobilenet_v3_large"])
def test_backbone_is_not_fetched_unless_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    assert build_model(f"torchvision:{name}", num_classes=4).training


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar:resnet20", {"depth": 3}, "cifar:resnet20: cannot be built with depth=3, num_classes=4: "),
        ("timm:test_resnet", {"nonsense": 3}, "timm:test_resnet: cannot be built with nonsense=3"),
        ("timm:resnet18.nonsense", {}, "timm:resnet18.nonsense: cannot be built with num_classes=4: "),
        ("cifar:resnet20", {"pretrained": True}, "cifar:resnet20: there are no published weights for it"),
        ("timm:resnet18", {"pretrained": True, "checkpoint": "a.pt"}, "either pretrained or a checkpoint, not both"),
    ],
)
def test_what_a_model_refuses_is_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SparsifyError) as caught:
        build_model(name, num_classes=4, **options)  # type: ignore[arg-type]
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:squeezenet1_1"])
def test_published_weights_out_of_reach_are_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        logging.getLogger("huggingface_hub").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no\nnetwork")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(RunError, match=f"^{name}: its published weights cannot be fetched: no network$"):
        build_model(name, num_classes=4, pretrained=True)
    assert caplog.text == ""


def test_published_weights_of_torchvision_are_loaded_but_for_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    source = build_model("torchvision:squeezenet1_1")
    state = source.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
    model = build_model("torchvision:squeezenet1_1", num_classes=4, pretrained=True)
    loaded = model.state_dict()
    assert torch.equal(loaded["features.0.weight"], state["features.0.weight"])
    assert loaded["classifier.1.weight"].shape[0] == 4


@pytest.mark.parametrize("widths", [[], "abc", [-1, 2, 3]])
def test_arguments_that_no_model_was_made_for_are_one_line(widths: object) -> None:
    with pytest.raises(SparsifyError, match=r"^cifar:resnet20: cannot be built with ") as caught:
        build_model("cifar:resnet20", widths=widths)
    assert "\n" not in str(caught.value)
