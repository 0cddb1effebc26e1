"""Widely used models, each in a small configuration with random weights: what works, and what does not.

    python -m benchmarks.coverage.wild [--only 'transformers *'] [--redo '*Mamba*'] [--jobs 2] [--seconds 120]
    python -m benchmarks.coverage.wild --summary      # the section of results.md

Their packages are the extra `wild`. Each model has a process of its own, one thread, and a limit of memory; each stage
of it has `--seconds` of the processor. Rows are appended to FOLDER/wild.jsonl; models that have one are left out the
next time.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from ...record import rows
from ..processes import work_through
from .checks import STAGES, check
from .models import ALL
from .summary import summarise

FOLDER = Path(__file__).parents[1] / "rows"
PACKAGES = {
    "transformers": "transformers",
    "smp": "segmentation_models_pytorch",
    "ultralytics": "ultralytics",
    "diffusers": "diffusers",
    "torchvision": "torchvision",
    "monai": "monai",
    "pyg": "torch_geometric",
    "open_clip": "open_clip",
    "torch.nn": "torch",
    "timm": "timm",
    "lightning": "lightning",
    "peft": "peft",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage.wild",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models to look at: a glob over their names")
    parser.add_argument("--redo", default="", metavar="PATTERN", help="models to look at again")
    parser.add_argument("--stages", default=",".join(STAGES), help="of a model that has a row: what to do again")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the rows are")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--memory", type=float, default=8, help="GB for one model")
    parser.add_argument("--seconds", type=float, default=120, help="of the processor, for one stage of a model")
    parser.add_argument("--summary", action="store_true", help="only write what the rows say")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    file = given.folder / "wild.jsonl"
    if given.summary:
        found = rows(file)
        summarise({name: found[name] for name in ALL if name in found}, [PACKAGES[name.split()[0]] for name in ALL])
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true"}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known, stages = rows(file), given.stages.split(",")
    done = {name for name in known if not fnmatchcase(name, given.redo)}
    names = [name for name in ALL if fnmatchcase(name, given.only) and name not in done]
    for package in dict.fromkeys(PACKAGES[name.split()[0]] for name in names):
        if find_spec(package) is None:
            names = [name for name in names if PACKAGES[name.split()[0]] != package]
            print(f"{package}: not installed", flush=True)
        else:
            import_module(package)  # once, not in each process
    limits = {"jobs": given.jobs, "memory": given.memory, "seconds": 10 * len(STAGES) * given.seconds}
    for name, row in work_through(
        names, lambda name: partial(check, name, given.seconds, stages), lambda name, row: None, **limits
    ):
        row = known.get(name, {}) | row
        with file.open("a") as out:
            out.write(json.dumps({"model": name} | row) + "\n")
        gaps = [f"{stage}: {row[stage]}" for stage in STAGES if row.get(stage, "ok") != "ok"]
        print(f"{name}: {row['seconds']} s; {'; '.join(gaps or row.get('problems', []))}", flush=True)


if __name__ == "__main__":
    main()
