"""sparsify train"""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparsify.datasets import known_names
from sparsify.errors import ElsewhereError, RunStopped, SparsifyError
from sparsify.processes.launch import Launch, read_launch

from .main import Stopped
from .signals import Signals

if TYPE_CHECKING:
    from sparsify.training.recipe.read import Recipe
    from sparsify.training.setup.prepare import Prepared

# Option -> the key of the recipe that it sets.
_SHORT = {
    "model": "model.name",
    "data": "data.name",
    "data_dir": "data.dir",
    "seed": "train.seed",
    "device": "train.device",
    "keep": "train.checkpoint.keep",
}
# A resumed run keeps everything that affects its results.
_FREE_ON_RESUME = ("data_dir", "device", "keep")


@click.command("train")
@click.argument("recipe", required=False)
@click.option("--model", metavar="SPEC", help="timm:NAME, torchvision:NAME or cifar:NAME; see `sparsify models`.")
@click.option("--data", metavar="NAME", help=f"{known_names()}.")
@click.option("--data-dir", metavar="DIR", help="Folder of the data, to which they are downloaded if missing.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--out", metavar="DIR", help="The run's folder.  [default: runs/<recipe>-<model>-<seed>, and what --set changes]"
)
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override any key of the recipe; repeatable."
)
@click.option(
    "--plugin",
    metavar="FILE",
    help="Python file to execute: its criteria, schedules and data sets can be named.",
)
@click.option("--resume", metavar="RUN", help="Resume the run in this folder from its last checkpoint.")
@click.option("--keep", type=int, metavar="N", help="How many of the newest checkpoints to keep, at least 2.")
@click.option("--overwrite", is_flag=True, help="Replace an existing run.")
@click.option("--dry-run", is_flag=True, help="Build and verify the model, print it and the plan, and stop.")
@click.option("--full", is_flag=True, help="With --dry-run: print every update, not a line for each cycle.")
@click.option("--no-verify", is_flag=True, help="Do not verify that the masks are live and change no bit.")
def command(
    recipe: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    plugin: str | None,
    resume: str | None,
    overwrite: bool,
    dry_run: bool,
    full: bool,
    no_verify: bool,
    **short: str | int | None,
) -> None:
    """Train and prune a model by RECIPE (a YAML file); write a run folder.

    Start with: sparsify train recipes/union_mask.yaml
    """
    launch = read_launch()
    try:
        if out == "":
            raise SparsifyError("train: --out is given, and empty")
        merged, folder = _recipe_and_folder(resume, recipe, out, overrides, plugin, overwrite, short)
        if full and not dry_run:
            raise SparsifyError("train: --full belongs to --dry-run")
        if dry_run and launch.size > 1:
            raise SparsifyError(f"train: --dry-run is for one process, {launch.size} are started")
    except SparsifyError as error:
        if launch.local_rank:  # all processes of a machine find the same
            raise ElsewhereError("", error.exit_code) from error
        raise
    if dry_run:
        from sparsify.training.folder.run_folder import check_new

        if resume is None:
            check_new(folder, overwrite=overwrite)
        from .view.plan import show_plan

        show_plan(merged, full=full, check=not no_verify)
        return
    again = ["--resume", str(folder), *(["--plugin", plugin] if plugin else [])]
    _train(merged, folder, again, launch, resume=resume is not None, overwrite=overwrite, check=not no_verify)


def _recipe_and_folder(
    resume: str | None,
    recipe: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    plugin: str | None,
    overwrite: bool,
    short: dict[str, str | int | None],
) -> tuple[Recipe, Path]:
    from sparsify.training.folder.run_folder import default_folder

    if resume is not None:
        return _resumed(resume, recipe, out, overrides, plugin, overwrite, short), Path(resume)
    if recipe is None:
        raise SparsifyError("train: give a RECIPE, e.g. recipes/union_mask.yaml, or --resume RUN")
    merged = _merged(recipe, short, overrides, plugin)
    if out:
        return merged, Path(out)
    given = [f"{_SHORT[name]}={value}" for name, value in short.items() if value is not None]
    return merged, default_folder(merged, [*given, *overrides])


def _train(
    recipe: Recipe,
    folder: Path,
    again: Sequence[str],
    launch: Launch,
    *,
    resume: bool,
    overwrite: bool,
    check: bool,
) -> None:
    from sparsify.training.folder.run_folder import check_new

    from .view.progress import Screen

    screen = Screen(silent=launch.rank > 0)
    signals = Signals("; the run goes on from its last checkpoint")
    if launch.rank:  # the first process gives the same warnings
        warnings.simplefilter("ignore")
    try:
        with signals, screen:
            if not resume and launch.size == 1 and not launch.restarts:
                check_new(folder, overwrite=overwrite)  # before torch takes its seconds to import
            from sparsify.training.run.train import train

            def on_start(prepared: Prepared, folder: Path) -> None:
                screen.start(prepared, folder)
                signals.gentle = True

            result = train(
                recipe,
                out=folder,
                resume=resume,
                overwrite=overwrite,
                check=check,
                on_start=on_start,
                on_record=screen.record,
                stop=signals.asked,
            )
    except (KeyboardInterrupt, RunStopped):
        # Before the start, --resume would resume the run that --overwrite was to replace.
        begun = resume or screen.started
        if launch.rank:
            raise Stopped("", signals.code) from None
        how = f"; go on with: sparsify train {shlex.join(again)}" if begun else ""
        raise Stopped(f"stopped{how}", signals.code) from None
    screen.finish(result)


def _merged(
    path: str, short: dict[str, str | int | None], overrides: Sequence[str], plugin: str | None = None
) -> Recipe:
    from sparsify.training.recipe.read import read_recipe

    # A JSON string is a YAML string, whatever characters are in it.
    given = {name: f"{_SHORT[name]}={json.dumps(value)}" for name, value in short.items() if value is not None}
    try:
        return read_recipe(path, [*given.values(), *overrides], plugin=plugin)
    except SparsifyError as error:
        message = str(error)
        for name, override in given.items():
            message = message.replace(f"--set {override}: {_SHORT[name]}", f"--{name.replace('_', '-')} {short[name]}")
        raise SparsifyError(message) from None


def _resumed(
    run: str,
    recipe: str | None,
    out: str | None,
    overrides: Sequence[str],
    plugin: str | None,
    overwrite: bool,
    short: dict[str, str | int | None],
) -> Recipe:
    from sparsify.training.folder.run_folder import stored_recipe
    from sparsify.training.recipe.plugin import as_plugin

    fixed = [f"--{name.replace('_', '-')}" for name, value in short.items() if value and name not in _FREE_ON_RESUME]
    fixed += ["--out"] * bool(out) + ["--overwrite"] * overwrite
    if recipe is not None or fixed:
        extra = ", ".join(dict.fromkeys(fixed)) or f"the recipe {recipe}"
        raise SparsifyError(f"train: --resume uses the run's own recipe and folder; leave out {extra}")
    free = [name for name in _FREE_ON_RESUME if short[name] is not None]
    given = [f"{_SHORT[name]}={json.dumps(short[name])}" for name in free]
    return stored_recipe(Path(run), [*given, *overrides], plugin=as_plugin(plugin))
