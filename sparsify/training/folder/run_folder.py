"""A run's folder: what is in it, and when it may be written."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from ...errors import SparsifyError
from ...formats.io.atomic import atomic_write, is_temporary
from ...preprocess import beside
from ..recipe.plugin import Plugin
from ..recipe.read import Recipe, read_recipe
from .lock import NAME as LOCK
from .lock import check_free
from .same_recipe import FREE, differences

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
CONDITIONS = "conditions.json"  # what the run computed on, each time that it was started
LAST = "checkpoints/last.safetensors"
NEXT = f"{LAST}.new"  # whole already, but not yet the last
OLDER = "checkpoints/step-{}.safetensors"
STARTED_BY = ".torchrun"  # which torchrun started the run
BEST = "checkpoints/best.safetensors"
MODEL = "model.safetensors"
MASKS = "masks/cycle-{}.safetensors"
_BESIDE = tuple(str(beside(path)) for path in (BEST, MODEL))
# Without the recipe, which is replaced at the end: a folder half cleared is a run still, which --overwrite replaces.
_EVENTS = "events.out.tfevents.*"
_OURS = (LAST, NEXT, OLDER.format("*"), METRICS, CONDITIONS, STARTED_BY, BEST, MODEL)
_ALSO_OURS = (*_BESIDE, MASKS.format("*"), _EVENTS)
_FOLDER = re.compile(r'[^\x00-\x1f\x7f/\\:*?"<>|]+')
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d) *(\.|$)", re.IGNORECASE)
_LONGEST, _LONGEST_WITH_OVERRIDES = 200, 240


def default_folder(recipe: Recipe, overrides: Sequence[str] = ()) -> Path:
    """Return runs/<recipe>-<model>-<seed>, the model's name without its prefix.

    `overrides` (key=value) that change a run's results are appended, so that runs of a series get folders of their own.
    Raises SparsifyError for a recipe whose name would lead out of runs/, or is not a valid name of a folder.
    """
    model = re.sub(r"[^\w.+-]", "_", recipe.model.name.rpartition(":")[2])
    folder = f"{recipe.name}-{model}-{recipe.train.seed}"
    if not _FOLDER.fullmatch(folder) or _DEVICE.match(folder) or len(folder.encode(errors="replace")) > _LONGEST:
        raise SparsifyError(
            f"name: {recipe.name!r:.60} is no name of a folder in runs/: at most {_LONGEST} bytes with model and seed, "
            'no control characters, none of / \\ : * ? " < > | and no device of Windows (CON, NUL ...); '
            "choose another, or give --out"
        )
    return Path("runs") / f"{folder}{_suffix(overrides, _LONGEST_WITH_OVERRIDES - len(folder.encode()))}"


def _suffix(overrides: Sequence[str], room: int) -> str:
    """Return `overrides` as the end of a folder's name, in at most `room` characters."""
    settings = {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in overrides)}
    elsewhere = {"name", "model", "model.name", "train.seed", *FREE}
    text = "".join(f"-{key}={settings[key]}" for key in sorted(settings.keys() - elsewhere))
    name = re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII)
    if name == text and len(name) <= room:
        return name
    # The checksum keeps values apart that differ only in replaced or cut characters.
    return f"{name[: room - 9]}-{zlib.crc32(text.encode(errors='replace')):08x}"


def check_new(folder: Path, *, overwrite: bool) -> None:
    """Raise SparsifyError unless a new run may be written to `folder`; nothing is touched.

    A folder in which a run was killed before it wrote its recipe counts as empty. A run that a live process writes is
    refused with the name of the process.
    """
    _check_place(folder, overwrite=overwrite)
    with one_line(folder):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise SparsifyError(f"{there}: is a file; a run needs a folder")
        if not os.access(there, os.W_OK):
            raise SparsifyError(f"{there}: may not be written to")
        check_free(folder)


def create(folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
    """Make `folder`, which must be locked, the folder of a new run. Files of an older run are removed, and no others.

    Raises SparsifyError as `check_new` does.
    """
    _check_place(folder, overwrite=overwrite)
    with one_line(folder):
        (folder / LAST).parent.mkdir(exist_ok=True)
        for pattern in (*_OURS, *_ALSO_OURS):
            for path in folder.glob(pattern):
                path.unlink()
    remove_left_overs(folder)
    atomic_write(folder / RECIPE, recipe.to_yaml().encode())


def _check_place(folder: Path, *, overwrite: bool) -> None:
    with one_line(folder):
        if not os.path.lexists(folder):
            return
        if not folder.is_dir():
            kind = "a link that leads nowhere" if folder.is_symlink() and not folder.exists() else "a file"
            raise SparsifyError(f"{folder}: is {kind}; a run needs a folder")
        if not (folder / RECIPE).exists():
            if all(_is_left_over(path) for path in folder.iterdir()):
                return
            raise SparsifyError(f"{folder}: holds other files and no run; choose another folder with --out")
    if not overwrite:
        raise SparsifyError(
            f"{folder}: already holds a run; go on with --resume {quote(str(folder))}, or give --overwrite or --out"
        )


def remove_left_overs(folder: Path) -> None:
    """Remove the temporary files of a run that was killed while it wrote one. The run must be locked."""
    with one_line(folder):
        for place in (folder, (folder / LAST).parent, (folder / MASKS).parent):
            for path in place.glob(".*.tmp"):
                if is_temporary(path):
                    path.unlink(missing_ok=True)


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Raise an OSError in a run's folder as a SparsifyError of one line."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        where, why = getattr(error, "filename", None) or folder, getattr(error, "strerror", error)
        raise SparsifyError(f"{where}: cannot be read or written ({why})") from None


def _is_left_over(path: Path) -> bool:
    if path.name == Path(LAST).parent.name and path.is_dir():
        return all(map(is_temporary, path.iterdir()))
    return path.name == LOCK or is_temporary(path)


def check_run(folder: Path) -> None:
    """Raise SparsifyError unless `folder` holds a run."""
    with one_line(folder):
        if not folder.is_dir():
            raise SparsifyError(f"{folder}: no such run")
        if not (folder / RECIPE).exists():
            raise SparsifyError(f"{folder}: not a run: there is no {RECIPE} in it")


def stored_recipe(folder: Path, overrides: Sequence[str] = (), *, plugin: Plugin | None = None) -> Recipe:
    """Return the recipe of the run in `folder`, with overrides; raises SparsifyError if there is none.

    A run that was made with a plugin needs the same one.
    """
    check_run(folder)
    return read_recipe(folder / RECIPE, overrides, plugin=plugin)


def check_same(folder: Path, given: Recipe) -> None:
    """Raise SparsifyError that names the keys if `given` is not the recipe of the run in `folder`.

    Keys that do not change results, such as the device and the data's folder, may differ (`same_recipe.FREE`).
    """
    check_run(folder)
    try:
        text = (folder / RECIPE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SparsifyError(f"{folder / RECIPE}: cannot be read ({error})") from None
    if different := differences(text, given):
        free = ", ".join(FREE)
        raise SparsifyError(
            f"{folder}: holds a run of another recipe: {different}; a run resumes with its own (only {free} may change)"
        )
