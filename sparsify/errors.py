"""The errors a user can cause, and the nearest-guess wording they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class SparsifyError(Exception):
    """A user's mistake: one line that says where, what was given, what is allowed and the nearest guess.

    `exit_code` is what the command line ends with.
    """

    exit_code = 2


class RunError(SparsifyError):
    """A run that could not go on although what was asked for was right: a full disk, a folder that is gone."""

    exit_code = 1


class Diverged(RunError):
    """A training whose loss or weights are no longer numbers; its last sound checkpoint stays."""


class ElsewhereError(RunError):
    """Another of the processes that train together failed; `exit_code` is the one that it ends with.

    `told`: that process says why itself.
    """

    def __init__(self, message: str, exit_code: int = 1, *, told: bool = True) -> None:
        super().__init__(message)
        self.exit_code, self.told = exit_code, told


class RunStopped(Exception):
    """A run that was asked to stop and did: its checkpoint is written, and it can go on."""


class RunWarning(UserWarning):
    """Something about a run that goes on: what was damaged, cut, or may change its bits."""


class EngineWarning(UserWarning):
    """An engine leaves to PyTorch what it has kernels for: the line names the operation and the reason."""


class MaskWarning(UserWarning):
    """An operation passes masks over: the line says which, and what to do instead."""


class CacheWarning(UserWarning):
    """Something kept on the disk is damaged, or cannot be kept: it is made anew, and the line says where and why."""


def one_line(error: object, most: int = 300) -> str:
    """Return what an error says on one line, cut to `most` characters; the name of its type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return the first `most` names and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word closest to `given`, whatever its case, or None if nothing is close."""
    words = {word.casefold(): word for word in reversed(list(allowed))}  # of two spellings the first
    matches = get_close_matches(given.casefold(), words, n=1, cutoff=0.6)
    return words[matches[0]] if matches else None


def nearest_file(given: Path, pattern: str) -> Path | None:
    """Return the file of the closest name that fits `pattern`, in the folder of `given` or, without it, the closest."""
    folder = given.parent
    if not folder.is_dir():
        guess = nearest(folder.name, [path.name for path in folder.parent.glob("*/")])
        folder = folder.parent / guess if guess else folder
    guess = nearest(given.name, [path.name for path in folder.glob(pattern) if path.exists()])
    return folder / guess if guess else None


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'WORD'?" with the allowed word closest to `given`, "" if nothing is close."""
    guess = nearest(given, allowed)
    return f"; did you mean '{guess}'?" if guess else ""


def unknown(what: str, given: str, allowed: Iterable[str], *, where: str = "") -> SparsifyError:
    """Return the error for a name that is not among `allowed`.

    `what` names the kind of thing ("criterion"), `where` the place it was written ("recipe.yaml:12, prune.criterion").
    Short lists are shown whole; of long ones only the nearest guess is shown.
    """
    choices = sorted(allowed)
    hint = did_you_mean(given, choices)
    listing = f" (known: {', '.join(choices)})" if len(choices) <= 12 else ""
    prefix = f"{where}: " if where else ""
    return SparsifyError(f"{prefix}unknown {what} '{given}'{hint}{listing}")
