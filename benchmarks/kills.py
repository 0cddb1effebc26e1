"""`python -m benchmarks.kills`: the shipped recipes killed again and again, and the bits that they end with.

Every kill is a `kill -9` at a random moment of the time that a training process computes; the run then goes on with
`--resume` (or starts again where no recipe was written yet) and is killed again. What it ends with is compared with
a run left alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
import torch
from safetensors.torch import load_file

from .record import environment, record

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
_MODEL = ["--model", "timm:test_resnet", "--device", "cpu", "--no-verify", "--set", "data.batch_size=500"]
_MODEL += ["--set", "train.epochs=4", "--set", "train.checkpoint.every=1it"]
_KILLS_A_RUN = 5
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Outcome:
    """What the kills of one recipe came to: how many, where they hit, in how many runs, and what went wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    problems: list[str] = field(default_factory=list)


@click.command()
@click.option("--count", default=100, help="Kills in all.")
@click.option("--seed", default=0, help="Of the moments at which runs are killed.")
@click.option("--seconds", default=3600.0, help="No further run is started after so long.")
def main(count: int, seed: int, seconds: float) -> None:
    """Kill runs of the shipped recipes and write what came of it to results.md."""
    _CONTEXT.set_forkserver_preload(["cli.train", "cli.view.progress", "sparsify.training.run.train", "timm.optim"])
    moments, end = random.Random(seed), time.monotonic() + seconds
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    outcomes = {name: Outcome() for name in names}
    with tempfile.TemporaryDirectory() as work:
        whole = {}
        for number in range(10**9):
            name = names[number % len(names)]
            done = sum(outcome.kills.total() for outcome in outcomes.values())
            if done >= count or time.monotonic() > end:
                break
            if name not in whole:
                whole[name] = _left_alone(name, Path(work) / name)
            folder, took = whole[name]
            _kill_a_run(name, folder, took, moments, min(_KILLS_A_RUN, count - done), outcomes[name])
            click.echo(f"{name}: {outcomes[name]}")
            record("kills", _body(outcomes))


def _left_alone(name: str, folder: Path) -> tuple[Path, float]:
    process, took = _start([*_arguments(name), "--out", str(folder)], folder.with_suffix(".err")), 0.0
    while process.exitcode is None:
        took = max(took, _processor_seconds(process))
        process.join(0.01)
    if process.exitcode != 0:
        raise click.ClickException(f"{name}: {folder.with_suffix('.err').read_text()}")
    return folder, took


def _kill_a_run(name: str, whole: Path, took: float, moments: random.Random, kills: int, outcome: Outcome) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder, err = Path(work) / "run", Path(work) / "err"
        for _ in range(kills):
            process = _start(_again(name, folder), err)
            if _killed(process, moments.uniform(0, took)):
                outcome.kills[_place(folder)] += 1
            elif process.exitcode != 0:
                outcome.problems.append(err.read_text())
                return
        process = _start(_again(name, folder), err)
        process.join()
        outcome.runs += 1
        if process.exitcode != 0 or "damaged" in err.read_text():
            outcome.problems.append(err.read_text())
        elif different := _differences(whole, folder):
            outcome.problems.append(f"different: {', '.join(different)}")


def _killed(process: BaseProcess, after: float) -> bool:
    """Kill a process once it has computed for so many seconds; return whether it still ran."""
    while process.exitcode is None and _processor_seconds(process) < after:
        process.join(0.01)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == -signal.SIGKILL


def _processor_seconds(process: BaseProcess) -> float:
    """Return how long a process of this machine (Linux) has computed; by the clock, other work would count too."""
    try:
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _again(name: str, folder: Path) -> list[str]:
    if (folder / "recipe.yaml").exists():
        return ["train", "--resume", str(folder)]
    return [*_arguments(name), "--out", str(folder)]


def _arguments(name: str) -> list[str]:
    return ["train", str(RECIPES / f"{name}.yaml"), *_MODEL]


def _place(folder: Path) -> str:
    """Return how far a killed run had come."""
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
    """Return a run's records without what the clock tells."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for one in records:
        for part in (one, one.get("shrunk", {})):
            part.pop("seconds", None)
            part.pop("text", None)
    return records


def _start(arguments: Sequence[str], err: Path) -> BaseProcess:
    process = _CONTEXT.Process(target=_train, args=(list(arguments), str(err)))
    process.start()
    return process


def _train(arguments: Sequence[str], err: str) -> None:
    from cli import main as sparsify

    for descriptor, file in ((1, os.devnull), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    sparsify(arguments)


def _body(outcomes: dict[str, Outcome]) -> str:
    places = ("before the recipe", "before a checkpoint", "within a file", "later")
    lines = [
        environment("torch", threads=1),
        "",
        "Runs of 4 epochs of 3 steps (timm:test_resnet on digits), a checkpoint after each step, up to "
        f"{_KILLS_A_RUN} times killed (`kill -9`) at random moments and resumed; then weights, masks of every cycle, "
        "the best model and all records are compared with those of a run left alone, bit for bit.",
        "",
        f"| recipe | runs | kills | {' | '.join(places)} | runs that failed or differ |",
        "|---|" + "---|" * (len(places) + 3),
    ]
    for name, outcome in outcomes.items():
        hit = " | ".join(str(outcome.kills[place]) for place in places)
        lines.append(f"| {name} | {outcome.runs} | {outcome.kills.total()} | {hit} | {len(outcome.problems)} |")
    kills, problems = (
        sum(outcome.kills.total() for outcome in outcomes.values()),
        [problem for outcome in outcomes.values() for problem in outcome.problems],
    )
    lines += ["", f"{kills} kills; {len(problems)} runs that failed or differ."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
