"""Whole-unit pruning and shrinking, beside Torch-Pruning and beside the dense models.

    python -m benchmarks.shrink --part models [--only 'timm:res*'] [--rounds 3]   # rows, then shrink.csv and results.md
    python -m benchmarks.shrink --part models --summary                           # from the rows that are there
    python -m benchmarks.shrink --part resnet50 [--rounds 9]
    python -m benchmarks.shrink --part threesp --data FOLDER [--steps 300] [--seeds 2]

`models` gives each model a process of its own, with one thread, a limit of memory and one of time. Its rows are
appended to FOLDER/models.jsonl as they are made, and models that have one are left out the next time. The folder of
`--data` holds CIFAR-100 as torchvision unpacks it. All parts need torch-pruning.
"""

from __future__ import annotations

import argparse
import json
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from ..coverage.models import create
from ..coverage.processes import Work, work_through
from ..coverage.shrunk import MODELS
from ..record import rows
from . import latency, models, summary, threesp

FOLDER = Path(__file__).parent / "rows"


def compare_models(given: argparse.Namespace) -> None:
    """Append a row for every model that is asked for and has none in FOLDER/models.jsonl."""
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / ".gitignore").write_text("*\n")
    file = given.folder / "models.jsonl"
    done = {model for model in rows(file) if not fnmatchcase(model, given.redo)}
    asked = [model for model in MODELS if fnmatchcase(model, given.only) and model not in done]
    known = counts(given.folder / "sizes.json")
    torch.set_num_threads(1)
    # What is imported on first use is no part of the work: every process starts with it.
    models.compare(*models.tiny(), rounds=1, seconds=60)

    def work(model: str) -> Work:
        return lambda: models.compare_model(model, rounds=given.rounds, seconds=given.seconds)

    # Each side has its own limit of time within the process; this one ends what hangs.
    limits = {"jobs": given.jobs, "memory": given.memory, "seconds": 20 * given.seconds}
    by_size = sorted(asked, key=known.__getitem__)
    for done_now, (model, row) in enumerate(work_through(by_size, work, lambda model, row: None, **limits), 1):
        with file.open("a") as out:
            out.write(json.dumps({"model": model} | row) + "\n")
        print(f"{done_now}/{len(by_size)} {model}: {summary.line(row)}", flush=True)


def counts(file: Path) -> dict[str, int]:
    """Return the number of parameters of every model; counted once and kept in a file."""
    if not file.exists():
        file.write_text(json.dumps({model: models.count(create(model, {}, "meta")) for model in MODELS}))
    known: dict[str, int] = json.loads(file.read_text())
    return known


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shrink", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["models", "resnet50", "threesp"], required=True)
    parser.add_argument("--rounds", type=int, help="how often each measurement is taken, in turns")
    parser.add_argument("--threads", type=int, default=2, help="of resnet50 and threesp; models has one")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="models: a glob over zoo:name; threesp: likewise"
    )
    parser.add_argument("--redo", default="", metavar="PATTERN", help="models: those to look at again")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="models: where the rows are")
    parser.add_argument("--summary", action="store_true", help="models: only write what the rows say")
    parser.add_argument("--jobs", type=int, default=1, help="models: processes at once")
    parser.add_argument("--memory", type=float, default=8, help="models: GB for one")
    parser.add_argument("--seconds", type=float, default=180, help="models: for one side of one")
    parser.add_argument("--data", type=Path, help="threesp: the folder of CIFAR-100")
    parser.add_argument("--steps", type=int, default=300, help="threesp: of each short run")
    parser.add_argument("--seeds", type=int, default=2, help="threesp: short runs of each model")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.part == "models":
        given.rounds = given.rounds or 3
        if not given.summary:
            compare_models(given)
        summary.summarise(given.folder / "models.jsonl")
        return
    torch.set_num_threads(given.threads)
    if given.part == "resnet50":
        latency.measure(given.rounds or 9)
    elif given.data is None:
        parser.error("threesp needs --data, the folder of CIFAR-100")
    else:
        threesp.measure(given.data, given.only, given.rounds or 9, given.steps, given.seeds)


if __name__ == "__main__":
    main()
