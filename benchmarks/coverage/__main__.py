"""Which models of timm and torchvision convert, and which shrink: every one is built, converted and proved.

    python -m benchmarks.coverage --part conversion [--only 'timm:resnet*'] [--redo '*swin*'] [--jobs 2]
    python -m benchmarks.coverage --part shrink [--only 'torchvision:*']
    python -m benchmarks.coverage --summary            # coverage.csv and the sections of results.md

Each model has a process of its own, with one thread, a limit of memory and one of time. The rows are appended as they
are made, to FOLDER/conversion.jsonl and to shrunk.jsonl, which is part of the repository; models that have one are left
out the next time.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from ..record import Row, rows
from .checks import check_conversion
from .meta import check_on_meta
from .models import all_models, create, family
from .processes import Work, work_through
from .shrunk import MODELS, check_shrink
from .summary import summarise

FOLDER = Path(__file__).parent / "rows"
SHRUNK = Path(__file__).parent / "shrunk.jsonl"
GOOD = ("holds", "part", "shrinks")
TOO_LARGE = "too many parameters to be run"


def sizes(folder: Path) -> dict[str, tuple[str, int]]:
    """Return family and number of parameters by model; counted once, on the meta device, and kept in a file."""
    file = folder / "sizes.json"
    if not file.exists():
        counted = {}
        for model in all_models():
            counted[model] = (family(model), sum(p.numel() for p in create(model, {}, "meta").parameters()))
        file.write_text(json.dumps(counted))
    return {model: (part, count) for model, (part, count) in json.loads(file.read_text()).items()}


def in_order(counted: dict[str, tuple[str, int]]) -> list[str]:
    """Return the models by size, but torchvision's and the smallest of each of timm's families before all others."""
    by_size = sorted(counted, key=lambda model: counted[model][1])
    smallest = {part: model for model in reversed(by_size) for part in [counted[model][0]]}
    return sorted(by_size, key=lambda model: not (model.startswith("torchvision:") or model in smallest.values()))


def convert_all(given: argparse.Namespace) -> None:
    """Append the rows that FOLDER/conversion.jsonl has not yet, or has without bits although they are asked for."""
    counted = sizes(given.folder)

    def wanting(row: Row) -> bool:
        return bool(row.get("bits") == f"meta: {TOO_LARGE}" and row["parameters"] <= given.largest)

    def work(model: str) -> Work:
        if counted[model][1] > given.largest:
            return lambda: check_on_meta(model, TOO_LARGE)
        return lambda: check_conversion(model)

    def rest(model: str, row: Row) -> Work | None:
        if row["verdict"] not in ("error", "no input") or row.get("bits", "").startswith("meta"):
            return None
        return lambda: check_on_meta(model, row["problems"][0] if row["problems"] else "no input")

    append(given, given.folder / "conversion.jsonl", in_order(counted), work, rest, wanting)


def shrink_all(given: argparse.Namespace) -> None:
    """Append the rows that `SHRUNK` has not yet, of the smallest models first."""
    counted = sizes(given.folder)
    models = sorted(MODELS, key=lambda model: counted[model][1])

    def work(model: str) -> Work:
        return lambda: check_shrink(model)

    append(given, SHRUNK, models, work, lambda model, row: None, lambda row: False)


def append(
    given: argparse.Namespace,
    file: Path,
    models: list[str],
    work: Callable[[str], Work],
    rest: Callable[[str, Row], Work | None],
    wanting: Callable[[Row], bool],
) -> None:
    """Do the work for the models that are asked for and have no row in `file`, and append their rows."""
    counted = sizes(given.folder)
    again = {
        model
        for model, row in rows(file).items()
        if wanting(row) or fnmatchcase(model, given.redo) or given.redo_failed and row["verdict"] not in GOOD
    }
    done = rows(file).keys() - again
    models = [model for model in models if fnmatchcase(model, given.only) and model not in done]
    limits = {"jobs": given.jobs, "memory": given.memory, "seconds": given.seconds}
    for count, (model, row) in enumerate(work_through(models, work, rest, **limits), 1):
        head = {"model": model, "family": counted[model][0], "parameters": counted[model][1]}
        with file.open("a") as out:
            out.write(json.dumps(head | row) + "\n")
        problem = (row.get("problems") or [""])[0]
        print(f"{count}/{len(models)} {model}: {row['verdict']} in {row['seconds']} s {problem}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["conversion", "shrink"], default="conversion")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models to look at: a glob over zoo:name")
    parser.add_argument("--redo", default="", metavar="PATTERN", help="models to look at again")
    parser.add_argument("--redo-failed", action="store_true", help="look again at all that failed")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the rows of conversions are")
    parser.add_argument("--largest", type=float, default=4e8, help="parameters of a model that is run with values")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--memory", type=float, default=8, help="GB for one model")
    parser.add_argument("--seconds", type=float, default=120, help="for one model")
    parser.add_argument("--summary", action="store_true", help="only write what the rows say")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / ".gitignore").write_text("*\n")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.summary:
        summarise(rows(given.folder / "conversion.jsonl"), rows(SHRUNK))
    elif given.part == "conversion":
        convert_all(given)
    else:
        shrink_all(given)


if __name__ == "__main__":
    main()
