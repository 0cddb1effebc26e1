"""`python -m benchmarks.kills`: the shipped recipes interrupted again and again, and the bits of their results.

A run is ended up to five times, each time in a way drawn from `endings.WAYS`: killed at a random moment of the time
that it computes, or at a random call within the writing of a file; asked to stop by one of four signals; or met by a
disk that is full from a random write on. Each time it is then resumed with `--resume` (or started again if no recipe
was written yet). Its result is compared with that of a run left alone.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import click
import torch
from safetensors.torch import load_file

from sparsify.training.folder.checkpoint import read_step

from .endings import CONTEXT, WAYS, end_a_run, processor_seconds, start
from .record import environment, record

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
_MODEL = ["--model", "timm:test_resnet", "--device", "cpu", "--no-verify", "--set", "data.batch_size=500"]
_MODEL += ["--set", "train.epochs=4", "--set", "train.checkpoint.every=1it"]
_STEPS = 12
_ENDINGS_A_RUN = 5


class Whole(NamedTuple):
    """A run left alone: its folder, its processor seconds, and its calls of the system to write files."""

    folder: Path
    seconds: float
    calls: int


@dataclass
class Outcome:
    """One recipe: its number of runs, how often each way ended it in each state, and what went wrong."""

    ways: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    problems: list[str] = field(default_factory=list)


@click.command()
@click.option("--count", default=100, help="Endings in all.")
@click.option("--seed", default=0, help="Of the moments at which runs are ended.")
@click.option("--seconds", default=3600.0, help="No further run is started after so long.")
def main(count: int, seed: int, seconds: float) -> None:
    """Interrupt runs of the shipped recipes and write the outcome to results.md."""
    CONTEXT.set_forkserver_preload(["cli.train", "cli.view.progress", "sparsify.training.run.train", "timm.optim"])
    moments, end = random.Random(seed), time.monotonic() + seconds
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    outcomes = {name: Outcome() for name in names}
    with tempfile.TemporaryDirectory() as work:
        whole: dict[str, Whole] = {}
        for number in range(10**9):
            name = names[number % len(names)]
            done = sum(outcome.ways.total() for outcome in outcomes.values())
            if done >= count or time.monotonic() > end:
                break
            if name not in whole:
                whole[name] = _left_alone(name, Path(work) / name)
            _end_a_run(name, whole[name], moments, min(_ENDINGS_A_RUN, count - done), outcomes[name])
            click.echo(f"{name}: {outcomes[name]}")
            record("kills", _body(outcomes))


def _left_alone(name: str, folder: Path) -> Whole:
    err = folder.with_suffix(".err")
    process, took = start([*_arguments(name), "--out", str(folder)], err), 0.0
    while process.exitcode is None:
        took = max(took, processor_seconds(process))
        process.join(0.01)
    if process.exitcode != 0:
        raise click.ClickException(f"{name}: {err.read_text()}")
    return Whole(folder, took, int(Path(f"{err}.calls").read_text()))


def _end_a_run(name: str, whole: Whole, moments: random.Random, endings: int, outcome: Outcome) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder, err = Path(work) / "run", Path(work) / "err"
        outcome.runs += 1
        for _ in range(endings):
            way = moments.choice(WAYS)
            left = _left(folder)
            came = end_a_run(
                _again(name, folder), err, way, moments, whole.seconds * left, max(1, round(whole.calls * left))
            )
            if came == "ended":
                outcome.ways[way] += 1
                outcome.places[_place(folder)] += 1
            elif came != "finished":
                outcome.problems.append(came)
                return
        process = start(_again(name, folder), err)
        process.join()
        if process.exitcode != 0 or "damaged" in err.read_text():
            outcome.problems.append(err.read_text())
        elif different := _differences(whole.folder, folder):
            outcome.problems.append(f"different: {', '.join(different)}")


def _left(folder: Path) -> float:
    """Return about which share of a run is left, including its start."""
    last = folder / "checkpoints" / "last.safetensors"
    done = read_step(last) if last.exists() else 0
    return 1 - 0.8 * (done or 0) / _STEPS


def _again(name: str, folder: Path) -> list[str]:
    if (folder / "recipe.yaml").exists():
        return ["train", "--resume", str(folder)]
    return [*_arguments(name), "--out", str(folder)]


def _arguments(name: str) -> list[str]:
    return ["train", str(RECIPES / f"{name}.yaml"), *_MODEL]


def _place(folder: Path) -> str:
    """Return the state that a killed run had reached."""
    if not (folder / "recipe.yaml").exists():
        return "before the recipe"
    if any(folder.rglob(".*.tmp")) or any(folder.rglob("*.new")):
        return "within a file"
    return "later" if (folder / "checkpoints" / "last.safetensors").exists() else "before a checkpoint"


def _differences(one: Path, other: Path) -> list[str]:
    names = [path.relative_to(one) for path in one.rglob("*.safetensors") if path.parent.name != "checkpoints"]
    names.append(Path("checkpoints/best.safetensors"))
    found = [str(name) for name in names if not _equal(one / name, other / name)]
    return found + ["metrics.jsonl"] * (_records(one) != _records(other))


def _equal(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _records(folder: Path) -> list[dict[str, object]]:
    """Return a run's records without times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for one in records:
        for part in (one, one.get("shrunk", {})):
            part.pop("seconds", None)
            part.pop("text", None)
    return records


def _body(outcomes: dict[str, Outcome]) -> str:
    places = ("before the recipe", "before a checkpoint", "within a file", "later")
    lines = [
        environment("torch", threads=1),
        "",
        "Runs of 4 epochs of 3 steps (timm:test_resnet on digits), a checkpoint after each step, up to "
        f"{_ENDINGS_A_RUN} times ended and resumed; then weights, masks of every cycle, the best model and all records "
        "are compared with those of a run left alone, bit for bit. `kill -9` comes at a random moment of the time that "
        "the process computes, or at a random call (write, fsync, rename, remove) of the writing of a file, of which "
        "half a piece is then written; signals come at random moments; `disk full` is every write refused (ENOSPC) "
        "from a random one on. `next:` the state that the folder was left in.",
        "",
        f"| recipe | runs | {' | '.join(WAYS)} | next: {' | '.join(places)} | runs that failed or differ |",
        "|---|" + "---|" * (len(WAYS) + len(places) + 2),
    ]
    for name, outcome in outcomes.items():
        counts = [outcome.ways[way] for way in WAYS] + [outcome.places[place] for place in places]
        lines.append(f"| {name} | {outcome.runs} | {' | '.join(map(str, counts))} | {len(outcome.problems)} |")
    endings = sum(outcome.ways.total() for outcome in outcomes.values())
    runs = sum(outcome.runs for outcome in outcomes.values())
    problems = sum(len(outcome.problems) for outcome in outcomes.values())
    lines += ["", f"{endings} endings in {runs} runs; {problems} runs that failed or differ."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
