"""The names a recipe can use for optimisers and data sets, looked up without importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ...datasets import DATASETS, FOLDER, HUB, TIMM_READERS
from ...errors import SparsifyError, did_you_mean, unknown
from ...models import FROM_PYTHON
from .settings import DataSettings
from .values import known_device


@cache
def optimizer_names() -> tuple[str, ...]:
    """Return the names of timm.optim, read from its source: importing it takes seconds."""
    spec = find_spec("timm")
    assert spec is not None and spec.origin is not None, "timm is a dependency"
    source = (Path(spec.origin).parent / "optim" / "_optim_factory.py").read_text(encoding="utf-8")
    return tuple(sorted(set(re.findall(r"(?:OptimInfo\(\s*(?:name=)?|register_alias\()'(\w+)'", source))))


def check_optimizer_name(name: str, *, where: str) -> None:
    """Raise SparsifyError unless `name` is an optimiser of timm.optim."""
    if name.lower() not in optimizer_names():
        raise unknown("optimiser", name, optimizer_names(), where=where)


def check_data_name(settings: DataSettings, *, where: str = "") -> None:
    """Raise SparsifyError unless the data set is one of ours or of a reader of timm.data, and its folder exists."""
    name, prefix = settings.name, f"{where}: " if where else ""
    if name in DATASETS or name.startswith(TIMM_READERS):
        return
    if name.startswith(FROM_PYTHON):
        raise SparsifyError(f"{prefix}'{name}' was given from Python; it can only come from there: train(data=...)")
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        if not os.path.isdir(folder):
            raise SparsifyError(f"{prefix}no such folder '{folder}'")
        return
    if name.startswith(HUB):
        _check_hub_name(name.removeprefix(HUB), prefix)
        return
    hint = did_you_mean(name, DATASETS) or (f"; did you mean '{FOLDER}{name}'?" if os.path.isdir(name) else "")
    readers = " and ".join(f"{prefix}NAME" for prefix in TIMM_READERS)
    known = f"{', '.join(DATASETS)}, {FOLDER}PATH, {HUB}OWNER/NAME, {readers} (read by timm.data)"
    raise SparsifyError(f"{prefix}unknown data set '{name}'{hint} (known: {known})")


def _check_hub_name(name: str, prefix: str) -> None:
    is_path = bool(name) and os.path.isdir(name) or name.startswith((".", "/", "~"))
    if is_path and not os.path.isdir(name):
        raise SparsifyError(f"{prefix}no such folder '{name}'")
    if not is_path and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise SparsifyError(f"{prefix}'{name}' is no set of the hub: it is written {HUB}OWNER/NAME, or {HUB}FOLDER")
    if find_spec("datasets") is None:
        raise SparsifyError(f"{prefix}'{HUB}{name}' needs a package that is not installed: pip install datasets")


def check_trackers(names: Iterable[str], *, where: str) -> None:
    """Raise SparsifyError unless the package of each tracker is installed."""
    for name in names:
        if find_spec(name) is None:
            raise SparsifyError(f"{where}: {name} is not installed: pip install {name}")


def check_device(name: str, *, where: str = "") -> None:
    """Raise SparsifyError unless `name` is a valid name of a device; whether it is available is not checked."""
    try:
        known_device(name)
    except ValueError as error:
        raise SparsifyError(f"{where}: {error}" if where else str(error)) from None


def check_source(source: str, *, where: str) -> None:
    """Raise SparsifyError unless `source` is a file, a folder with a model in it, or a repository of the hub."""
    from ...formats.io.locate import is_on_hub, model_file

    if is_on_hub(source):
        return  # a missing repository is reported when it is downloaded
    try:
        if not os.path.isfile(model_file(source)):
            raise SparsifyError(f"no such file '{source}'")
    except SparsifyError as error:
        raise SparsifyError(f"{where}: {error}") from None
