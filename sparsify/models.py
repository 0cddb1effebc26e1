"""Models by name: "timm:resnet50", "torchvision:vgg11_bn", "transformers:gpt2", "cifar:resnet32" -> nn.Module.

Names are read from the source files of timm and torchvision, since importing the packages takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from . import transformers_models
from .arguments import PATH, takes
from .errors import RunError, SparsifyError, nearest, one_line, unknown
from .hub_log import quiet_hub

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

# Also in cifar.py, which imports torch; a test checks that they are equal.
CIFAR_NAMES = ("resnet20", "resnet32", "resnet56", "vgg19_bn")
# How a recipe names a module or a data set that was passed from Python: this prefix, then its class.
FROM_PYTHON = "python:"
# timm fetches these itself, with the architecture, so there is no name to check.
TIMM_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")


# What constructors raise for unsuitable arguments.
_REFUSALS = (TypeError, ValueError, RuntimeError, AssertionError, LookupError, AttributeError, ArithmeticError)


def list_models(pattern: str | None = None) -> list[str]:
    """Return the names that `build_model` takes, sorted, with their prefixes; does not import torch.

    Names of transformers (of the hub, or folders) are not listed. `pattern` is a glob over the name with or without its
    prefix ("*resnet*", "timm:vgg*"); without wildcards it matches every name that contains it.
    """
    names = sorted(f"{prefix}:{name}" for prefix, known in _NAMES.items() for name in known())
    if pattern is None:
        return names
    if not any(wildcard in pattern for wildcard in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name.partition(":")[2], pattern)]


def check_model_name(name: str, *, where: str = "") -> None:
    """Raise SparsifyError with the nearest guess unless `build_model` knows `name`; does not import torch."""
    prefix, colon, rest = name.partition(":")
    start = f"{where}: " if where else ""
    if name.startswith(FROM_PYTHON):
        raise SparsifyError(f"{start}'{name}' was given from Python; it can only come from there: train(model=...)")
    if not colon:
        intended = [f"{known}:{name}" for known, names in _NAMES.items() if name.split(".")[0] in names()]
        guess = nearest(name, [one.partition(":")[2] for one in list_models()])
        if not intended and guess:
            intended = [f"{known}:{guess}" for known, names in _NAMES.items() if guess in names()]
        hint = f"; did you mean {' or '.join(map(repr, intended))}?" if intended else ""
        raise SparsifyError(f"{start}model '{name}' has no prefix (timm:, torchvision:, transformers: or cifar:){hint}")
    if prefix not in _BUILD:
        raise unknown("model prefix", f"{prefix}:", [f"{known}:" for known in _BUILD], where=where)
    if prefix == transformers_models.PREFIX:
        transformers_models.check_name(rest, where=where)
        return
    if prefix == "timm" and rest.startswith(TIMM_SOURCES):
        return
    # timm names weights by a tag behind the architecture, resnet50.a1_in1k.
    architecture = rest.partition(".")[0] if prefix == "timm" else rest
    if architecture not in _NAMES[prefix]():
        elsewhere = [f"{known}:{rest}" for known, names in _NAMES.items() if architecture in names()]
        if elsewhere:
            raise SparsifyError(f"{start}unknown model '{name}'; did you mean {' or '.join(map(repr, elsewhere))}?")
        raise unknown("model", name, [f"{prefix}:{one}" for one in _NAMES[prefix]()], where=where)


@takes(name=str, num_classes=(Integral, NoneType), pretrained=bool, checkpoint=(*PATH, NoneType))
def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    **arguments: Any,
) -> nn.Module:
    """Return the model called `name` ("timm:resnet50", "cifar:resnet32"), in training mode, on the CPU.

    `num_classes` is the size of its head (default: that of its library). `pretrained` loads the weights that its
    library publishes, `checkpoint` those of a file (see `weights.load_checkpoint`; a head of another size stays as
    initialised). `arguments` are passed to the constructor. Raises SparsifyError for an unknown name, arguments that
    the constructor refuses and a checkpoint that does not fit, RunError if published weights cannot be fetched.
    """
    prefix, _, rest = name.partition(":")
    if prefix == transformers_models.PREFIX:
        transformers_models.check_name(rest, configured=transformers_models.CONFIG in arguments)
    else:
        check_model_name(name)
    if pretrained and checkpoint is not None:
        raise SparsifyError(f"{name}: either pretrained or a checkpoint, not both")
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    model = _BUILD[prefix](rest, pretrained, arguments)
    if checkpoint is not None:
        from .weights import load_checkpoint

        load_checkpoint(model, checkpoint)
    return model


def _build_cifar(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    from .cifar import CIFAR_MODELS

    if pretrained:
        raise SparsifyError(f"cifar:{name}: there are no published weights for it; start from a checkpoint instead")
    return _called(f"cifar:{name}", CIFAR_MODELS[name], arguments)


def _build_timm(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    from timm import create_model

    return _called(
        f"timm:{name}", lambda **rest: create_model(name, pretrained=pretrained, **rest), arguments, pretrained
    )


def _build_torchvision(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    from inspect import signature

    from torchvision.models import get_model_builder, get_model_weights

    builder = get_model_builder(name)
    # Without this, detectors and segmentation models fetch the weights of their backbone.
    defaults: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in signature(builder).parameters else {}
    if name in ("googlenet", "inception_v3"):
        # Without init_weights these two warn that their default initialisation will change. Their published weights
        # expect the model to normalise its input itself.
        defaults |= {"init_weights": True, "transform_input": pretrained}
    model = _called(f"torchvision:{name}", builder, {**defaults, **arguments})
    if pretrained:
        from .weights import load_state

        weights = get_model_weights(name).DEFAULT
        state = fetched(f"torchvision:{name}", lambda: weights.get_state_dict(progress=False, check_hash=True))
        load_state(model, state, source=f"the published weights of torchvision:{name}")
    return model


def _called(
    name: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any], fetches: bool = False
) -> nn.Module:
    try:
        return fetched(name, lambda: build(**arguments)) if fetches else build(**arguments)
    except _REFUSALS as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise SparsifyError(f"{name}: cannot be built with {given or 'no arguments'}: {one_line(error)}") from error


def fetched(name: str, fetch: Callable[[], T]) -> T:
    """Return what `fetch` does; raises RunError for model `name` if its weights cannot be fetched."""
    from http.client import HTTPException

    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with quiet_hub():
            return fetch()
    except (OSError, HTTPException, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise RunError(f"{name}: its published weights cannot be fetched: {one_line(error)}") from error


def _sources(package: str, folder: str) -> list[str]:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is a dependency"
    return [path.read_text(encoding="utf-8") for path in sorted((Path(spec.origin).parent / folder).rglob("*.py"))]


@cache
def _timm_names() -> frozenset[str]:
    pattern = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)", re.MULTILINE)
    return frozenset(name for source in _sources("timm", "models") for name in pattern.findall(source))


@cache
def _torchvision_names() -> frozenset[str]:
    pattern = re.compile(r"^@register_model\((?:name=[\"'](\w+)[\"'])?\)\n(?:@.*\n|^[ )].*\n)*def (\w+)", re.MULTILINE)
    found = [pair for source in _sources("torchvision", "models") for pair in pattern.findall(source)]
    return frozenset(given or function for given, function in found)


_NAMES: dict[str, Callable[[], frozenset[str]]] = {
    "cifar": lambda: frozenset(CIFAR_NAMES),
    "timm": _timm_names,
    "torchvision": _torchvision_names,
}
_BUILD: dict[str, Callable[[str, bool, Mapping[str, Any]], nn.Module]] = {
    "cifar": _build_cifar,
    "timm": _build_timm,
    "torchvision": _build_torchvision,
    "transformers": transformers_models.build,
}
