"""Folders of images whose classes are listed in a file `labels.csv` instead of a folder per class."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...errors import SparsifyError, did_you_mean, one_line, unknown

LABELS = "labels.csv"
_COLUMNS = ("file", "label")


class LabelledImages(Dataset[Any]):
    """A data set of pairs of an image, transformed if `transform` is set, and its class index."""

    def __init__(self, samples: Sequence[tuple[str, int]], classes: list[str], loader: Callable[[str], Any]) -> None:
        self.samples, self.classes, self._loader = list(samples), classes, loader
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, label = self.samples[index]
        image = self._loader(file)
        return (image if self.transform is None else self.transform(image)), label


@dataclass(frozen=True)
class _Row:
    """A row: its place in the table, the image's file, the first folder of its path, and the name of its class."""

    where: str
    file: str
    part: str
    label: str


def labelled_sets(
    train: Path, test: Path, loader: Callable[[str], Any], *, others: Iterable[str] = (), missing: bool = False
) -> tuple[LabelledImages, LabelledImages] | None:
    """Return the sets of the folders `train` and `test`, None if neither they nor their parent have a `labels.csv`.

    A table has paths relative to its own folder. Classes are the labels of the training images, sorted by name. Rows
    of the folders `others` are skipped; with `missing`, files may be missing. Raises SparsifyError, one line, for a
    mistake in a table.
    """
    tables = [folder / LABELS for folder in (train, test)]
    common = train.parent / LABELS
    there = [path for path in (common, *tables) if path.is_file()]
    if not there:
        return None
    if there == [common]:
        parts = _split(_read(common, missing=missing), train.name, test.name, others)
    elif there == tables:
        parts = _read(tables[0], missing=missing), _read(tables[1], missing=missing)
    else:
        found = ", ".join(map(str, there))
        raise SparsifyError(f"data.name: take one {common}, or one each in {train} and {test}; there is {found}")
    for folder, part in zip((train, test), parts, strict=True):
        if not part:
            raise SparsifyError(f"data.name: {folder / LABELS if len(there) > 1 else common} has no image of {folder}")
    classes = sorted({row.label for row in parts[0]})
    first, second = (LabelledImages(list(_samples(part, classes)), classes, loader) for part in parts)
    return first, second


def _split(rows: Sequence[_Row], train: str, test: str, others: Iterable[str]) -> tuple[list[_Row], list[_Row]]:
    """Return the rows of the folders `train` and `test`; those of `others` are skipped."""
    for row in rows:
        if row.part not in {train, test, *others}:
            raise SparsifyError(f"{row.where}: {row.file!r} is neither in {train} nor in {test}")
    return [row for row in rows if row.part == train], [row for row in rows if row.part == test]


def _samples(rows: Iterable[_Row], classes: Sequence[str]) -> Iterator[tuple[str, int]]:
    numbers = {name: number for number, name in enumerate(classes)}
    for row in rows:
        if row.label not in numbers:
            hint = did_you_mean(row.label, classes)
            raise SparsifyError(f"{row.where}: no training image has the label {row.label!r}{hint}")
        yield row.file, numbers[row.label]


def _read(path: Path, *, missing: bool) -> list[_Row]:
    """Return the rows of a table, whose files must exist and be named once."""
    lines: dict[Path, int] = {}
    rows = []
    for number, file, label in _values(path):
        where = f"data.name: {path}:{number}"
        if not file or not label:
            raise SparsifyError(f"{where}: the {'label' if file else 'file'} is empty")
        if len(file.splitlines()) > 1 or len(label.splitlines()) > 1:
            raise SparsifyError(f"{where}: a value goes over several lines (a quotation mark that is not closed?)")
        relative = Path(file)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise SparsifyError(f"{where}: {file!r} is no path to a file below {path.parent}")
        if relative in lines:
            raise SparsifyError(f"{where}: {file!r} stands in line {lines[relative]} already")
        # Not Path.is_file, which raises for names that are too long.
        if not missing and not os.path.isfile(path.parent / relative):
            raise SparsifyError(f"{where}: no such file {file!r} in {path.parent}")
        lines[relative] = number
        rows.append(_Row(where, str(path.parent / relative), relative.parts[0], label))
    return rows


def _values(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the file and the label of each row; empty lines are skipped."""
    try:
        # Spreadsheets begin the file with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, f"data.name: {path}:1")
            for row in reader:
                if row and len(row) != len(header):
                    raise SparsifyError(f"data.name: {path}:{reader.line_num}: {len(row)} values, not file and label")
                if row:
                    values = dict(zip(header, row, strict=True))
                    yield reader.line_num, values["file"].strip(), values["label"].strip()
    except UnicodeDecodeError:
        raise SparsifyError(f"data.name: {path}: not UTF-8 text") from None
    except csv.Error as error:
        raise SparsifyError(f"data.name: {path}:{reader.line_num}: not CSV: {one_line(error, 80)}") from None
    except OSError as error:
        raise SparsifyError(f"data.name: {path}: cannot be read ({error.strerror})") from None


def _check_header(header: Sequence[str], where: str) -> None:
    for name in header:
        if name not in _COLUMNS:
            raise unknown("column", one_line(name, 40) if name else "", _COLUMNS, where=where)
    if sorted(header) != sorted(_COLUMNS):
        raise SparsifyError(f"{where}: the first line has to be file,label; it is {','.join(header) or 'empty'}")
