"""Checks of one model's units: their number, and that its outputs do not change when half of them are removed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import Pruner, convert, fold
from sparsify.calls import tensors_in
from sparsify.surgery.channels.analyse import Dead, analyse
from sparsify.surgery.shrink.shrink import shrink

from .checks import Row, first_that_runs, in_one_line
from .models import tries

# The models that a peer was tried on: torchvision's classifiers, and one small model of each of timm's source files.
TORCHVISION = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101
    resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5
    shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t
    swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32
    wide_resnet101_2 wide_resnet50_2
""".split()
TIMM = """
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms cpubone_nano
    crossvit_tiny_240 cspnext_tiny darknet17 davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn48b
    edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
    fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmixer_12_224 halonet_h1 hardcorenas_b
    hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_s inception_next_atto inception_resnet_v2
    inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 legacy_xception levit_128 lowformer_b0 mambaout_femto
    maxvit_pico_rw_256 mobilenetv3_small_050 mobilenetv5_base mobileone_s0 mobilevit_xxs mvitv2_tiny nest_tiny
    nextvit_small nf_regnet_b0 pit_xs_224 poolformerv2_s24 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050
    repvit_m1 res2next50 resnest14d resnet18 resnetv2_18 rexnet_100 samvit_base_patch16_224 selecsls42 sequencer2d_s
    shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 tinynet_c tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny
    vit_srelpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 volo_d1_224 vovnet39a xception41p
    xcit_nano_12_p8_224
""".split()
MODELS = [f"torchvision:{name}" for name in TORCHVISION] + [f"timm:{name}" for name in TIMM]
SPARSITY = 0.5
EXACT = 1e-9  # largest difference in double precision, relative to the largest output
_SIZE_OPTIONS = {"img_size", "image_size", "input_size"}


def check_shrink(model: str) -> Row:
    """Prune half of a model's units, the smallest of each layer, shrink it and hold it against the pruned model.

    The model is of its published width, depth and input size. `verdict` is "shrinks" if at least 5 % of the parameters
    go, the outputs are the same and the smaller model can be trained on; otherwise the stage that failed. The row is of
    `dead="masks"`; under "zeros" it has what another shrink of the same pruned model, with `dead="zeros"`, came to.
    """
    own_size = (made for made in tries(model) if not _SIZE_OPTIONS & set(made.options))
    built = first_that_runs(model, own_size)
    return built if isinstance(built, dict) else check_shrunk(*built)


def check_shrunk(network: nn.Module, given: tuple[Any, ...], made: Any) -> Row:
    """Do what `check_shrink` says with a model at hand."""
    row: Row = {"input": str(made), "parameters": _count(network), "problems": []}
    stage = "analyse"
    network.eval()
    try:
        channels = analyse(network, given)
        row |= {"units": channels.groups, "barriers": len(channels.barriers), "barrier": list(channels.barriers[:3])}
        stage = "prune"
        convert(network, ignore=heads(network, given))
        settings = {"granularity": "unit", "scope": "layer", "sparsity": SPARSITY}
        Pruner(network, settings, total_steps=0, example_input=given).start()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - any error of these is what this looks for
        return {**row, "verdict": stage, "problems": [in_one_line(error)]}
    return row | check_cut(network, given, "masks") | {"zeros": check_cut(network, given, "zeros")}


def check_cut(network: nn.Module, given: tuple[Any, ...], dead: Dead) -> Row:
    """Shrink a pruned model and say what is left of it, whether it computes the same and whether it trains."""
    row: Row = {"problems": []}
    stage = "shrink"
    try:
        # In double precision, as the outputs are compared: constants that go into a bias would be rounded otherwise.
        report = shrink(network.double(), in_precision(given, torch.float64), dead=dead)
        small, pruned = report.model, fold(network)
        row |= {"after": _count(small), "form": "own class" if type(small) is type(pruned) else "graph"}
        row |= {"multiply_adds": list(report.multiply_adds), "kept": list(report.kept[:3]), "pruned": report.pruned}
        row |= {"proved": list(report.proved), "bound": len(report.bound), "training": report.training}
        stage = "compare"
        row |= proof(pruned, small, other_values(given))
        stage = "train"
        loss = sum(
            output.float().square().mean() for output in tensors_in(small.float().train()(*copy.deepcopy(given)))
        )
        loss.backward()  # type: ignore[union-attr]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - any error of these is what this looks for
        return {**row, "verdict": stage, "problems": [in_one_line(error)]}
    if row["difference"] > EXACT:
        row["problems"].append(f"outputs differ by {row['difference']:.1e} in double precision")
    if row["after"] > 0.95 * _count(network):
        row["problems"].append(f"{row['after'] / _count(network):.0%} of the parameters are left")
    row["verdict"] = "fails" if row["problems"] else "shrinks"
    return row


def heads(network: nn.Module, given: tuple[Any, ...]) -> list[str]:
    """Return the weights of the layers that are as wide as the output: classes are not to be pruned."""
    with torch.no_grad():
        width = tensors_in(network(*copy.deepcopy(given)))[0].shape[1]
    layers = ((name, getattr(module, "weight", None)) for name, module in network.named_modules())
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return [
        f"{name}.weight"
        for name, weight in layers
        if isinstance(network.get_submodule(name), kinds) and isinstance(weight, Tensor) and len(weight) == width
    ]


def other_values(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return arguments of another batch size and other values: what was removed must be idle for all of them."""
    generator = torch.Generator().manual_seed(2)
    return tuple(
        torch.randn(len(value) + 1, *value.shape[1:], generator=generator) if isinstance(value, Tensor) else value
        for value in given
    )


def in_precision(given: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Return the arguments with floating tensors of this precision."""
    floats = (value.is_floating_point() if isinstance(value, Tensor) else False for value in given)
    return tuple(value.to(dtype) if is_float else value for value, is_float in zip(given, floats, strict=True))


def proof(pruned: nn.Module, small: nn.Module, given: tuple[Any, ...]) -> Row:
    """Return the largest difference of two models' outputs, relative to the largest output, in two precisions."""
    found: Row = {}
    for name, dtype in (("difference_float32", torch.float32), ("difference", torch.float64)):
        inputs = in_precision(given, dtype)
        with torch.no_grad():
            outputs = [tensors_in(copy.deepcopy(one).to(dtype).eval()(*inputs)) for one in (pruned, small)]
        if [value.shape for value in outputs[0]] != [value.shape for value in outputs[1]]:
            raise ValueError("the outputs have other shapes")
        pairs = zip(*outputs, strict=True)
        found[name] = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)
    return found


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
