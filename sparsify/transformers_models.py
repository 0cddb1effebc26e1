"""Models of transformers by name: "transformers:NAME_OR_FOLDER[:AUTOCLASS]" -> nn.Module, without remote code.

A name is one of the Hugging Face hub ("gpt2", "google/vit-base-patch16-224"); a folder holds config.json and needs no
network. AUTOCLASS is one of transformers' ("AutoModelForCausalLM"); without it the configuration names the class, or
AutoModel is used. transformers is imported only when a model is built.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RunError, RunWarning, SparsifyError, did_you_mean, listed, nearest, one_line, unknown

if TYPE_CHECKING:
    from torch import nn

PREFIX = "transformers"
CONFIG = "config"  # the argument that replaces config.json; files written by sparsify contain it
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_ATTENTION = ("eager", "sdpa")  # anything else may name a kernel to download from the hub
# Keys with which a configuration can cause code or weights to be downloaded, and their allowed values.
_FETCHING: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "use_pretrained_backbone": (None, False),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), (None, *_ATTENTION)),
}
_UNUSED = {
    "missing_keys": "are fresh: the published weights have none",
    "unexpected_keys": "of the published weights are left out",
    "mismatched_keys": "are fresh: the published ones are of another shape",
}
_DROPPED = ("auto_map", "name_or_path", "_name_or_path", "transformers_version")


def parts(rest: str) -> tuple[str, str | None]:
    """Return (name or folder, class or None) of the text after "transformers:"."""
    name, colon, last = rest.rpartition(":")
    return (name, last) if colon and "/" not in last and not os.path.isdir(rest) else (rest, None)


def is_folder(name: str) -> bool:
    """Return whether a name means a local folder: it starts like a path, or such a folder exists."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or os.path.isdir(name)


def check_name(rest: str, *, where: str = "", configured: bool = False) -> None:
    """Raise SparsifyError with the nearest guess unless this can be a model's name; does not import transformers.

    `configured`: the configuration is given, so a folder need not exist.
    """
    start = f"{where}: " if where else ""
    if find_spec(PREFIX) is None:
        raise SparsifyError(f"{start}'{PREFIX}:{rest}' needs the package transformers: pip install transformers")
    name, auto = parts(rest)
    if auto is not None and auto not in _auto_classes():
        raise unknown("class of transformers", auto, _auto_classes(), where=where)
    if configured:
        return
    if not is_folder(name):
        if not _HUB_NAME.fullmatch(name):
            raise SparsifyError(
                f"{start}'{name}' is neither a folder nor a name of the hub (OWNER/NAME){_near_folder(name)}"
            )
        return
    folder = Path(name).expanduser()
    if not os.path.isdir(folder):
        raise SparsifyError(f"{start}there is no folder '{name}'{_near_folder(name)}")
    if not os.path.isfile(folder / "config.json"):
        raise SparsifyError(f"{start}'{name}' has no config.json{_near_folder(name)}")


def build(rest: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    """Return the model, in training mode, with the published weights if `pretrained`, else with fresh ones.

    `arguments` change the configuration; "config" (a dict) replaces it, and then nothing is looked up.
    """
    name, auto = parts(rest)
    spec = f"{PREFIX}:{rest}"
    config = configuration(rest, arguments)
    if pretrained and is_folder(name) and not has_weights(name):
        said = f"{spec}: the folder holds no weights; the model keeps its fresh initialisation"
        warnings.warn(said, RunWarning, stacklevel=2)
        pretrained = False
    kind = _class_of(config, auto)
    try:
        if pretrained:
            return _pretrained(spec, kind, str(Path(name).expanduser()) if is_folder(name) else name, config)
        model: nn.Module = kind._from_config(config) if auto is None else kind.from_config(config, **_NO_REMOTE)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise SparsifyError(f"{spec}: cannot be built: {one_line(error)}") from error
    return model.train()


_NO_REMOTE = {"trust_remote_code": False}


def configuration(rest: str, arguments: Mapping[str, Any]) -> Any:
    """Return the configuration (a PreTrainedConfig) of a name with the changes in `arguments`."""
    from transformers import CONFIG_MAPPING

    spec, name = f"{PREFIX}:{rest}", parts(rest)[0]
    changes = dict(arguments)
    given = changes.pop(CONFIG, None)
    if "num_classes" in changes:
        changes["num_labels"] = changes.pop("num_classes")
    table = _read(spec, name) if given is None else given
    if not isinstance(table, Mapping):
        raise SparsifyError(f"{spec}: config: {table!r} is given, a dict is needed, as in config.json")
    table = {key: value for key, value in table.items() if key not in _DROPPED}
    check_configuration(spec, {**table, **changes})
    kind = table.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(str(kind), CONFIG_MAPPING.keys())
        raise SparsifyError(f"{spec}: the configuration's model_type, {kind!r}, is none of transformers' own{hint}")
    try:
        config, unused = CONFIG_MAPPING[kind].from_dict(table, return_unused_kwargs=True, **changes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SparsifyError(f"{spec}: the configuration does not fit: {one_line(error)}") from error
    for key in unused:
        raise unknown(f"argument of {type(config).__name__}", key, vars(config), where=spec)
    return config


def portable(rest: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that contain the whole configuration, so that the model can be built anywhere."""
    config = configuration(rest, arguments)
    table: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict()))
    return {CONFIG: {key: value for key, value in table.items() if key not in _DROPPED}}


def check_configuration(where: str, table: Any) -> None:
    """Raise SparsifyError for a configuration that would cause code or weights to be downloaded."""
    for key, value in _items(table):
        if key in _FETCHING and value not in _FETCHING[key]:
            raise SparsifyError(f"{where}: {key} {value!r} in its configuration would be fetched; it is not built")


def has_weights(folder: str) -> bool:
    """Return whether a folder holds weights that transformers would load."""
    return any(any(Path(folder).expanduser().glob(pattern)) for pattern in _WEIGHTS)


def _items(table: Any) -> Iterator[tuple[str, Any]]:
    for key, value in table.items() if isinstance(table, Mapping) else ():
        yield key, value
        yield from _items(value)


def _read(spec: str, name: str) -> Any:
    """Return the configuration of a folder or a name of the hub, as a dict."""
    from transformers import PreTrainedConfig

    if is_folder(name):
        path = Path(name).expanduser() / "config.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SparsifyError(f"{spec}: {path} cannot be read: {one_line(error)}") from error
    try:
        return PreTrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        raise RunError(f"{spec}: its configuration cannot be fetched: {one_line(error)}{_near_folder(name)}") from error


def _class_of(config: Any, auto: str | None) -> Any:
    """Return the class to build: the Auto class asked for, else the configuration's own, else AutoModel."""
    import transformers

    own = next(iter(config.architectures or ()), None)
    kind = getattr(transformers, auto or own or "AutoModel", None)
    made_here = isinstance(kind, type) and (auto is not None or issubclass(kind, transformers.PreTrainedModel))
    if made_here:
        return kind
    return transformers.MODEL_MAPPING[type(config)]


def _pretrained(spec: str, kind: Any, source: str, config: Any) -> nn.Module:
    try:
        model, info = kind.from_pretrained(
            source, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **_NO_REMOTE
        )
    except OSError as error:
        raise RunError(f"{spec}: its published weights cannot be fetched: {one_line(error)}") from error
    for what, problem in _UNUSED.items():
        names = sorted(one if isinstance(one, str) else one[0] for one in info.get(what) or ())
        if names:
            warnings.warn(f"{spec}: {listed(names, 3)} {problem}", RunWarning, stacklevel=2)
    trained: nn.Module = model.train()
    return trained


@cache
def _auto_classes() -> frozenset[str]:
    found = find_spec(PREFIX)
    assert found is not None and found.origin is not None
    source = Path(found.origin).parent / "models" / "auto" / "modeling_auto.py"
    return frozenset(re.findall(r"^class (Auto\w+)\(", source.read_text(encoding="utf-8"), re.MULTILINE))


def _near_folder(name: str) -> str:
    """Return "; did you mean ...?" with the nearest folder with a config.json next to the named one, or ""."""
    path = Path(name).expanduser()
    beside = {one.parent.name: str(one.parent) for one in sorted(path.parent.glob("*/config.json"))}
    guess = nearest(path.name, beside)
    return "" if guess is None else f"; did you mean '{PREFIX}:{beside[guess]}'?"
