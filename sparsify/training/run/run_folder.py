"""A run's folder: what is in it, when it may be written, and the log of its records."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import RunError, SparsifyError
from ...formats.io.atomic import atomic_write
from ...preprocess import beside
from ..recipe.read import Recipe, read_recipe
from ..recipe.yaml_lines import parse_yaml

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
LAST = "checkpoints/last.safetensors"
BEST = "checkpoints/best.safetensors"
MODEL = "model.safetensors"
MASKS = "masks/cycle-{}.safetensors"
_BESIDE = tuple(str(beside(path)) for path in (BEST, MODEL))
_OURS = (RECIPE, METRICS, LAST, BEST, MODEL, *_BESIDE, MASKS.format("*"), "events.out.tfevents.*")
_FOLDER = re.compile(r'[^\x00-\x1f\x7f/\\:*?"<>|]+')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d) *(\.|$)", re.IGNORECASE)
_LONGEST = 200
_FREE = frozenset({"train.device", "data.dir", "data.workers"})


def default_folder(recipe: Recipe) -> Path:
    """Return runs/<recipe>-<model>-<seed>, the model's name without its prefix.

    Raises SparsifyError for a recipe whose name would lead out of runs/, or that no system takes for a folder.
    """
    model = re.sub(r"[^\w.+-]", "_", recipe.model.name.rpartition(":")[2])
    folder = f"{recipe.name}-{model}-{recipe.train.seed}"
    if not _FOLDER.fullmatch(folder) or _DEVICE.match(folder) or len(folder.encode(errors="replace")) > _LONGEST:
        raise SparsifyError(
            f"name: {recipe.name!r:.60} is no name of a folder in runs/: at most {_LONGEST} bytes with model and seed, "
            'no control characters, none of / \\ : * ? " < > | and no device of Windows (CON, NUL ...); '
            "choose another, or give --out"
        )
    return Path("runs") / folder


def check_new(folder: Path, *, overwrite: bool) -> None:
    """Raise SparsifyError unless a new run may be written to `folder`; nothing is touched."""
    try:
        if folder.is_symlink() and not folder.exists():
            raise SparsifyError(f"{folder}: is a link that leads nowhere; a run needs a folder")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except (OSError, ValueError) as error:  # too long a name, one with a NUL, no permission
        raise SparsifyError(f"{folder}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not folder.is_dir():
        raise SparsifyError(f"{folder}: is a file; a run needs a folder")
    if not (folder / RECIPE).exists():
        raise SparsifyError(f"{folder}: holds other files and no run; choose another folder with --out")
    if not overwrite:
        raise SparsifyError(
            f"{folder}: already holds a run; go on with --resume {folder}, or give --overwrite or --out"
        )


def create(folder: Path, recipe: Recipe) -> None:
    """Make `folder` the folder of a new run of `recipe`. An older run's files are removed, and no others."""
    try:
        (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
        for pattern in _OURS:
            for path in folder.glob(pattern):
                path.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise SparsifyError(f"{folder}: cannot be written ({getattr(error, 'strerror', error)})") from None
    atomic_write(folder / RECIPE, recipe.to_yaml().encode())


def check_run(folder: Path) -> None:
    """Raise SparsifyError unless `folder` holds a run."""
    try:
        found = folder.is_dir()
    except OSError as error:
        raise SparsifyError(f"{folder}: cannot be read ({error.strerror})") from None
    if not found:
        raise SparsifyError(f"{folder}: no such run")
    if not (folder / RECIPE).exists():
        raise SparsifyError(f"{folder}: not a run: there is no {RECIPE} in it")


def stored_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of the run in `folder`, with overrides; raises SparsifyError if there is none."""
    check_run(folder)
    return read_recipe(folder / RECIPE, overrides)


def check_same(folder: Path, given: Recipe) -> None:
    """Raise SparsifyError that names a key if `given` is not the recipe of the run in `folder`.

    Where a run computes and where its data lie may change; its results do not depend on them.
    """
    check_run(folder)
    # As YAML, where a criterion that is a Python function is its name.
    stored = (folder / RECIPE).read_text(encoding="utf-8")
    one, other = (_flat(parse_yaml(text, RECIPE)[0]) for text in (stored, given.to_yaml()))
    # A run of an earlier version lacks keys that came later: what they are by default is what it did.
    defaults = _flat(parse_yaml(Recipe(model=given.model).to_yaml(), RECIPE)[0])
    one = {**{key: value for key, value in defaults.items() if key.startswith("data.")}, **one}
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key) and key not in _FREE:
            what = f"{key} is {one.get(key)} there and {other.get(key)} here"
            raise SparsifyError(f"{folder}: holds a run of another recipe: {what}; a run goes on with its own")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Log:
    """The records of a run: a line each in metrics.jsonl, and TensorBoard events. Use it as a context manager.

    `size` cuts metrics.jsonl to its length at a checkpoint, in bytes, and `step` hides later events, so that a run that
    goes on leaves the log it would have left without a break.
    """

    def __init__(self, folder: Path, *, size: int = 0, step: int = 0) -> None:
        # Slow to import.
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS
        # Unbuffered: a full disk is then met in `write`, and not a second time when the file is closed.
        self._file = path.open("ab", buffering=0)
        if self._file.tell() < size:
            self._file.close()
            raise SparsifyError(
                f"{path}: shorter than at the checkpoint; the run cannot go on (--overwrite starts anew)"
            )
        self._file.truncate(size)
        self._file.seek(size)
        self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {self._file.name}: {error.strerror}") from None
        for key, value in record.items():
            if key not in ("step", "epoch", "seconds", "shrunk"):
                self._events.add_scalar(key, value, record["step"])

    def sync(self) -> int:
        """Return the length of metrics.jsonl in bytes, once it is safely on the disk."""
        self._events.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()
        self._file.close()
