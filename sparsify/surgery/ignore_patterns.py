"""Ignore patterns: the weights that a list of names, globs and keywords matches."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..errors import SparsifyError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

KEYWORDS = ("first", "last")
_EVERY = {"Module", "Masked", "object"}  # bases that every module has, or that conversion adds


class PatternError(SparsifyError):
    """A wrong pattern, or one that matches nothing: `keys` is its place below the section, `problem` what is wrong."""

    def __init__(self, keys: tuple[str | int, ...], problem: str) -> None:
        named = keys[:-1] if isinstance(keys[-1], int) else keys
        super().__init__(f"{'.'.join(map(str, named))}: {problem}")
        self.keys, self.problem = keys, problem


def ignored_names(
    names: Sequence[str],
    patterns: Iterable[str],
    *,
    others: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    classes: Mapping[str, Collection[str]] | None = None,
    key: tuple[str | int, ...] = ("ignore",),
) -> dict[str, str]:
    """Return {name: the first pattern that matches it} for the matched ones among `names`.

    A pattern is a weight's name ("head.weight"), a module's name (all weights below it), a glob ("layer1.*"), a regular
    expression ("re:.*attn.*", which must match the whole name of a weight or its module), the name of a class
    ("Linear": all weights in such modules, unless a weight or module has that name), or the keyword "first" or "last"
    (of `names`, in order of registration). "name:last" is the module named "last", and likewise for any other name.
    `others` are names that exist but carry no mask: matching them is no error and has no effect. `aliases` maps
    parameters to second names, those of the weights computed from them; `classes` is the result of `class_names`.
    Raises PatternError, at `key`, for a pattern that matches nothing and for an invalid regular expression.
    """
    known, kinds = aliases or {}, classes or {}
    found: dict[str, str] = {}
    for index, pattern in enumerate([patterns] if isinstance(patterns, str) else patterns):
        if pattern in KEYWORDS:
            matches = list(names[:1] if pattern == "first" else names[-1:])
        else:
            fits = _fits(pattern, (*key, index))
            by_name = [name for name in (*names, *others) if fits(name) or (name in known and fits(known[name]))]
            by_name = by_name or [name for name in (*names, *others) if pattern in kinds.get(name, ())]
            if not by_name:
                near = [
                    *names,
                    *{name.rpartition(".")[0] for name in names},
                    *(k for n in names for k in kinds.get(n, ())),
                ]
                hint = did_you_mean(pattern, dict.fromkeys(near))
                raise PatternError((*key, index), f"'{pattern}' matches no weight of the model{hint}")
            matches = [name for name in by_name if name in set(names)]
        for name in matches:
            found.setdefault(name, pattern)
    return found


def _fits(pattern: str, key: tuple[str | int, ...]) -> Callable[[str], bool]:
    """Return a function that says whether `pattern` matches a name."""
    if not pattern.startswith("re:"):
        plain = pattern.removeprefix("name:")
        return lambda name: _matches(name, plain)
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise PatternError(key, f"'{pattern}' is not a regular expression: {error}") from None
    return lambda name: any(expression.fullmatch(one) for one in (name, name.rpartition(".")[0]))


def class_names(model: nn.Module) -> dict[str, set[str]]:
    """Return {parameter name: class names of the modules that contain it, bases included}.

    The class of the model itself, and bases that every module has, are left out.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")[:-1]
        owners = (modules.get(".".join(parts[: end + 1])) for end in range(len(parts)))
        found[name] = {cls.__name__ for one in owners if one is not None for cls in type(one).__mro__} - _EVERY
    return found


def keyword_clashes(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Return a note for each keyword among the patterns that is also the name of a module with weights."""
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    return [
        f"ignore: '{word}' is the keyword, here {names[0 if word == 'first' else -1]}; the module of that name is "
        f"'name:{word}'"
        for word in KEYWORDS
        if word in given and any(word in name.split(".")[:-1] for name in names)
    ]


def is_adapter(name: str, module: nn.Module) -> bool:
    """Return whether an unmasked weight belongs to a low-rank adapter (named as in peft), trained but not pruned."""
    parts = name.split(".")
    return any(part.startswith("lora_") for part in parts) and parts[-1] not in module.__dict__.get("masked_names", ())


def _matches(name: str, pattern: str) -> bool:
    module = name.rpartition(".")[0]
    return (
        name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) or fnmatchcase(module, pattern)
    )
