"""The command group, and its failures: one line and an exit code, or a traceback for a bug of ours."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from os.path import expanduser
from typing import NoReturn

import click

from sparsify import __version__
from sparsify.errors import ElsewhereError, SparsifyError, did_you_mean
from sparsify.namesake import warn_of_namesake

from .loading import announce_torch
from .output import lasting_output
from .signals import Signals

# name -> the module that holds it and its one-line help; a module is imported when its command runs or shows its help.
_COMMANDS = {
    "train": ("train", "Train and prune a model by a recipe."),
    "convert": ("convert", "Put masks on a model or checkpoint, pruned in one shot."),
    "export": ("export", "Write a trained model to a small file."),
    "import": ("import_", "Convert sparse files of compressed-tensors to dense ones."),
    "inspect": ("inspect", "Show the contents of a file or a model, layer by layer."),
    "eval": ("evaluate", "Measure a saved model's accuracy."),
    "predict": ("predict", "Classify image files with a saved or exported model."),
    "bench": ("bench", "Time a model on the sparse engine, and on PyTorch beside it."),
    "sweep": ("sweep", "Run a recipe over values and seeds, and compare."),
    "report": ("report", "Write a page about a run, or about several."),
    "compare": ("compare", "Compare finished runs: means over seeds, paired differences."),
    "diff": ("diff", "Show how far the masks of two models agree."),
    "models": ("models", "List the models that can be named."),
    "recipe-schema": ("schema", "Print the JSON schema of recipes, for editors."),
}


class Stopped(Exception):
    """Stopped by Ctrl-C or another signal; the message says how to resume, `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = import_module(f".{module}", __package__).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            hint = did_you_mean(args[0], _COMMANDS)
            raise click.UsageError(f"unknown command '{args[0]}'{hint} (known: {', '.join(_COMMANDS)})")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparsify")
def sparsify() -> None:
    """Make PyTorch models sparse, and make the sparsity pay.

    Start with: sparsify train recipes/union_mask.yaml
    """
    warn_of_namesake()


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 success, 1 the run failed, 2 a user's mistake, 130 stopped by Ctrl-C, 128 + N by signal N, which
    leaves no half-written file.
    """
    warnings.showwarning = _show_warning
    with lasting_output():
        announce_torch()
        _run(args)
    sys.exit(0)


def _run(args: Sequence[str] | None) -> None:
    given = [_at_home(one) for one in (sys.argv[1:] if args is None else args)]
    signals = Signals()
    try:
        with signals:
            _check_folder()
            sparsify.main(given, prog_name="sparsify", standalone_mode=False)
            sys.stdout.flush()
    except ElsewhereError as error:
        _leave("" if error.reported else str(error), error.exit_code)
    except SparsifyError as error:
        _leave(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        _leave(error.format_message(), 2)
    except Stopped as stopped:
        _leave(str(stopped), stopped.code)
    except (click.Abort, KeyboardInterrupt):
        _leave("stopped", signals.code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _leave(f"no space left on the disk{f' for {error.filename}' if error.filename else ''}", 1)


def _check_folder() -> None:
    """Raise SparsifyError if the working folder was removed: libraries of torch end the process there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise SparsifyError("the working folder was removed; change to another one") from None


def _at_home(argument: str) -> str:
    """Return an argument with the home folder for a leading `~`, which a shell leaves as it is in `--out=~/runs`."""
    return re.sub(r"^(--[a-z-]+=|)~(?=/|$)", lambda found: found[1] + expanduser("~"), argument)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"sparsify: warning: {' '.join(str(message).split())}", err=True)


def _leave(message: str, code: int) -> NoReturn:
    if message:
        click.echo(f"sparsify: {' '.join(message.split())}", err=True)
    sys.exit(code)
