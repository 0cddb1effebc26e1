"""Errors and warnings for users, and their shared did-you-mean wording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class SparsifyError(Exception):
    """A user's mistake: one line with the place, what was given, what is allowed and the closest match.

    `exit_code` is the command line's exit code.
    """

    exit_code = 2


class RunError(SparsifyError):
    """A run that could not continue for reasons outside of the call: a full disk, a deleted folder."""

    exit_code = 1


class Diverged(RunError):
    """A training run whose loss or weights became NaN or infinite; its last finite checkpoint is kept."""


class ElsewhereError(RunError):
    """Another process of the same training run failed; `exit_code` is that process's.

    `told`: that process prints the reason itself.
    """

    def __init__(self, message: str, exit_code: int = 1, *, told: bool = True) -> None:
        super().__init__(message)
        self.exit_code, self.told = exit_code, told


class RunStopped(Exception):
    """A run that stopped on request: its checkpoint is written, and it can be resumed."""


class RunWarning(UserWarning):
    """A run continues, but something was damaged or cut short, or its bits may change."""


class EngineWarning(UserWarning):
    """An engine leaves an operation to PyTorch that it has kernels for; the line gives operation and reason."""


class MaskWarning(UserWarning):
    """An operation ignores masks; the line names it and says what to do instead."""


class CacheWarning(UserWarning):
    """A cached file is damaged or cannot be written: its content is computed again. The line says where and why."""


def one_line(error: object, most: int = 300) -> str:
    """Return an error's message on one line, cut to `most` characters; its type's name if it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return the first `most` names and the number of others: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word closest to `given`, or None if nothing is close."""
    matches = get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_file(given: Path, pattern: str) -> Path | None:
    """Return the file matching `pattern` with the closest name, in the folder of `given` or the closest to it."""
    folder = given.parent
    if not folder.is_dir():
        guess = nearest(folder.name, [path.name for path in folder.parent.glob("*/")])
        folder = folder.parent / guess if guess else folder
    guess = nearest(given.name, [path.name for path in folder.glob(pattern)])
    return folder / guess if guess else None


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'WORD'?" with the allowed word closest to `given`, "" if nothing is close."""
    guess = nearest(given, allowed)
    return f"; did you mean '{guess}'?" if guess else ""


def unknown(what: str, given: str, allowed: Iterable[str], *, where: str = "") -> SparsifyError:
    """Return the error for a name that is not among `allowed`.

    `what` names the kind of thing ("criterion"), `where` the place it was written ("recipe.yaml:12, prune.criterion").
    Short lists are shown whole; of long ones only the closest match.
    """
    choices = sorted(allowed)
    hint = did_you_mean(given, choices)
    listing = f" (known: {', '.join(choices)})" if len(choices) <= 12 else ""
    prefix = f"{where}: " if where else ""
    return SparsifyError(f"{prefix}unknown {what} '{given}'{hint}{listing}")
