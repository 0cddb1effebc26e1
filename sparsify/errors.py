"""Errors and warnings for users, and their shared did-you-mean wording."""

from __future__ import annotations

import errno
import os
import stat
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from unicodedata import category

_JOINERS = "\u200c\u200d"  # of letters and of emoji


class SparsifyError(Exception):
    """A user's mistake, in one line: where it is, what was given, what is allowed and the nearest guess.

    `exit_code` is the exit status of the command line.
    """

    exit_code = 2

    def __str__(self) -> str:
        """Return the message in one line: what it quotes may hold line breaks, and codes that terminals obey."""
        line = " ".join(super().__str__().splitlines())
        return "".join(character if _is_readable(character) else repr(character)[1:-1] for character in line)


def _is_readable(character: str) -> bool:
    return character.isprintable() or category(character) == "Zs" or character in _JOINERS


class RunError(SparsifyError):
    """A valid request that could not be carried out: a full disk, a deleted folder, a failed download."""

    exit_code = 1


class Diverged(RunError):
    """A training run whose loss or weights became NaN or infinite; its last sound checkpoint is kept."""


class ElsewhereError(RunError):
    """Another process of the same training run failed; `exit_code` is that process's exit status.

    `reported`: the other process reports the reason itself, so the command line prints nothing.
    """

    def __init__(self, message: str, exit_code: int = 1, *, reported: bool = True) -> None:
        super().__init__(message)
        self.exit_code, self.reported = exit_code, reported


class RunStopped(Exception):
    """A run stopped on request, after it wrote a checkpoint from which it can resume."""


class RunWarning(UserWarning):
    """A problem that does not stop a run: a damaged or truncated file, something that may change its bits."""


class EngineWarning(UserWarning):
    """The engine runs an operation in PyTorch although it has a kernel for it; the message says which and why."""


class MaskWarning(UserWarning):
    """An operation ignores masks; the message says which one, and what to do instead."""


class CacheWarning(UserWarning):
    """A cache file is damaged or cannot be written; its content is computed again, the message says where and why."""


def one_line(error: object, most: int = 300) -> str:
    """Return an error's message on one line, cut to `most` characters; the name of its type if the message is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return the first `most` names and the number of others: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word closest to `given`, whatever its case, or None if nothing is close."""
    words = {word.casefold(): word for word in reversed(list(allowed))}  # of two spellings the first
    matches = get_close_matches(str(given).casefold(), words, n=1, cutoff=0.6)
    return words[matches[0]] if matches else None


def nearest_file(given: Path, pattern: str) -> Path | None:
    """Return the file that matches `pattern` and is named most like `given`, None if no name is close.

    It is looked for in the folder of `given`, or, if there is none, in the folder beside it with the closest name.
    """
    folder = given.parent
    if not os.path.isdir(folder):
        guess = nearest(folder.name, [path.name for path in folder.parent.glob("*/")])
        folder = folder.parent / guess if guess else folder
    guess = nearest(given.name, [path.name for path in folder.glob(pattern) if path.exists()])
    return folder / guess if guess else None


def check_regular(path: str | os.PathLike[str], *, piped: bool = False) -> None:
    """Raise OSError for a pipe and a device: opening the one may wait for ever, reading the other may never end.

    With `piped`, a pipe that a shell passes is taken, since it has a writer: /dev/stdin, /dev/fd/63, /proc/self/fd/11.
    """
    if not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path):
        return
    if piped and os.fspath(path).startswith(("/dev/", "/proc/")) and stat.S_ISFIFO(os.stat(path).st_mode):
        return
    raise OSError(errno.EINVAL, "not a regular file")


def text_in(path: Path) -> str:
    """Return "a text that starts with ...", "" for other files: what was fetched as weights is often a page of text."""
    try:
        with path.open("rb") as file:
            start = getincrementaldecoder("utf-8")().decode(file.read(200))  # it may end within a letter
    except (OSError, UnicodeDecodeError):
        return ""
    if start.startswith("version https://git-lfs"):
        return "a pointer of Git LFS to it; get the file itself with: git lfs pull"
    plain = start.strip() and all(letter.isprintable() or letter in "\r\n\t" for letter in start)
    return f"a text that starts with '{one_line(start, 40)}'" if plain else ""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'WORD'?" with the allowed word closest to `given`, or "" if nothing is close."""
    guess = nearest(given, allowed)
    return f"; did you mean '{guess}'?" if guess else ""


def unknown(what: str, given: str, allowed: Iterable[str], *, where: str = "") -> SparsifyError:
    """Return the error for a name that is not among `allowed`.

    `what` names the kind of thing ("criterion"), `where` the place it was written ("recipe.yaml:12, prune.criterion").
    The error names the nearest guess, and the whole list if it has at most 12 names.
    """
    choices = sorted(allowed)
    hint = did_you_mean(given, choices)
    listing = f" (known: {', '.join(choices)})" if len(choices) <= 12 else ""
    prefix = f"{where}: " if where else ""
    return SparsifyError(f"{prefix}unknown {what} '{given}'{hint}{listing}")
