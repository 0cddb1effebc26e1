"""Which weights a list of patterns names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from ..errors import SparsifyError, nearest


def ignored_names(
    names: Sequence[str],
    patterns: Iterable[str],
    *,
    others: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return, for each of `names` that a pattern matches, that pattern.

    A pattern is a weight's name ("head.weight"), a module's name (all weights below it), a glob ("layer1.*"), or
    "first" or "last" (of `names`, in order of registration). `others` are names that exist but carry no mask: to ignore
    them is right and has no effect. `aliases` holds second names, those of weights that are computed from parameters.
    Raises SparsifyError for a pattern that matches nothing at all.
    """
    known = aliases or {}

    def fits(name: str, pattern: str) -> bool:
        return _matches(name, pattern) or (name in known and _matches(known[name], pattern))

    found: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern in ("first", "last"):
            matches = list(names[:1] if pattern == "first" else names[-1:])
        else:
            matches = [name for name in names if fits(name, pattern)]
            if not matches and not any(fits(name, pattern) for name in others):
                guess = nearest(pattern, [*names, *{name.rpartition(".")[0] for name in names}])
                hint = f"; did you mean '{guess}'?" if guess else ""
                raise SparsifyError(f"ignore: '{pattern}' matches no weight of the model{hint}")
        for name in matches:
            found.setdefault(name, pattern)
    return found


def _matches(name: str, pattern: str) -> bool:
    module = name.rpartition(".")[0]
    return (
        name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) or fnmatchcase(module, pattern)
    )
