"""Ignore patterns: which weights a list of names, globs and keywords matches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import SparsifyError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

KEYWORDS = ("first", "last")


def ignored_names(
    names: Sequence[str],
    patterns: Iterable[str],
    *,
    others: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return, for each of `names` that a pattern matches, that pattern.

    A pattern is a weight's name ("head.weight"), a module's name (all weights below it), a glob ("layer1.*"), or
    the keyword "first" or "last" (of `names`, in order of registration). "name:last" is the module that is called so,
    and likewise for any other name. `others` are names that exist but carry no mask: to ignore them is right and has no
    effect. `aliases` holds second names, those of weights that are computed from parameters. Raises SparsifyError for a
    pattern that matches nothing at all.
    """
    known = aliases or {}

    def fits(name: str, pattern: str) -> bool:
        return _matches(name, pattern) or (name in known and _matches(known[name], pattern))

    found: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern in KEYWORDS:
            matches = list(names[:1] if pattern == "first" else names[-1:])
        else:
            plain = pattern.removeprefix("name:")
            matches = [name for name in names if fits(name, plain)]
            if not matches and not any(fits(name, plain) for name in others):
                hint = did_you_mean(pattern, [*names, *{name.rpartition(".")[0] for name in names}])
                raise SparsifyError(f"ignore: '{pattern}' matches no weight of the model{hint}")
        for name in matches:
            found.setdefault(name, pattern)
    return found


def keyword_clashes(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Return a line for each keyword among the patterns that is also the name of a module with weights."""
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    return [
        f"ignore: '{word}' is the keyword, here {names[0 if word == 'first' else -1]}; the module of that name is "
        f"'name:{word}'"
        for word in KEYWORDS
        if word in given and any(word in name.split(".")[:-1] for name in names)
    ]


def is_adapter(name: str, module: nn.Module) -> bool:
    """Whether a weight is one of a low-rank adapter, by its name as peft and others give it: it is trained, not pruned.

    What carries a mask already is none.
    """
    parts = name.split(".")
    return any(part.startswith("lora_") for part in parts) and parts[-1] not in module.__dict__.get("masked_names", ())


def _matches(name: str, pattern: str) -> bool:
    module = name.rpartition(".")[0]
    return (
        name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) or fnmatchcase(module, pattern)
    )
