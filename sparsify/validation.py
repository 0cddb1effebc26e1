"""Validation errors of settings as one line: place, key, what was given, what is allowed, the closest match."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .errors import SparsifyError, did_you_mean, nearest

Keys = tuple[str | int, ...]


class Source:
    """Where each key of settings was set: a line of a file, or an override; `joint` precedes a key."""

    def __init__(self, name: str, lines: Mapping[Keys, int], *, joint: str = ": ") -> None:
        self.name, self._joint = name, joint
        self._lines = dict(lines)
        self._overrides: dict[Keys, str] = {}

    def mark(self, path: Keys, override: str, *, only_new: bool = False) -> None:
        """Record that `override` set `path`; with `only_new`, unless the file did."""
        if only_new and (path in self._lines or path in self._overrides):
            return
        self._lines = {key: line for key, line in self._lines.items() if key[: len(path)] != path}
        self._overrides[path] = override

    def where(self, path: Keys) -> str:
        """Return "file:line: a.b.c" for a path, by its nearest parent that was set."""
        dotted = ".".join(map(str, path))
        for length in range(len(path), -1, -1):
            if path[:length] in self._overrides:
                return f"{self._overrides[path[:length]]}: {dotted}"
            if path[:length] in self._lines:
                return f"{self.name}:{self._lines[path[:length]]}: {dotted}"
        return f"{self.name}{self._joint}{dotted}" if dotted else self.name

    def order(self, path: Keys) -> tuple[int, int]:
        """Return a sort key: the file's lines in order, then the overrides."""
        for length in range(len(path), -1, -1):
            if path[:length] in self._overrides:
                return (1, list(self._overrides).index(path[:length]))
            if path[:length] in self._lines:
                return (0, self._lines[path[:length]])
        return (0, 0)


def first_problem(error: ValidationError, model: type[BaseModel], tree: Any, source: Source) -> SparsifyError:
    """Return the error for the problem written first, counting the others.

    `tree` is what was validated against `model`. One value that fits none of several types is one problem.
    """
    problems: dict[Keys, list[Any]] = {}
    details = error.errors(include_url=False)
    # A recipe cannot hold a function: naming one that Python may pass would not help.
    for detail in [one for one in details if one["type"] != "callable_type"] or details:
        problems.setdefault(_written_path(detail, tree), []).append(detail)
    # A missing key has no place, and an unknown key often explains it.
    path = min(problems, key=lambda path: (problems[path][0]["type"] == "missing", source.order(path)))
    text = _describe(path, problems[path], model, tree)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return SparsifyError(_one_line(f"{source.where(path)}: {text}{more}"))


def known_keys(model: type[BaseModel], path: Keys, tag: Any = None) -> list[str]:
    """Return the keys allowed at `path` below `model`, [] if none; `tag` is the `name` given there, if any."""
    models: list[type[BaseModel]] = [model]
    for key in (one for one in path if isinstance(one, str)):  # without indices of lists
        models = [
            found for one in models if key in one.model_fields for found in _models_in(one.model_fields[key].annotation)
        ]
    tagged = [one for one in models if tag is not None and tag in _tags(one)]
    return list(dict.fromkeys(name for one in tagged or models for name in one.model_fields))


def _models_in(annotation: Any, *, lists: bool = True) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) in (tuple, list) and not lists:
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument, lists=lists)


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["name"].annotation) if "name" in model.model_fields else ()


def _written_path(detail: Any, tree: Any) -> Keys:
    """Return an error's location as the user wrote it, without pydantic's names of union members."""
    path: list[str | int] = []
    node = tree
    *parents, last = detail["loc"] or ("",)
    for key in (*parents, last):
        if isinstance(node, Mapping) and key in node or isinstance(node, list | tuple) and isinstance(key, int):
            node = node[key]
            path.append(key)
    if detail["type"] == "missing" and path[-1:] != [last]:
        path.append(last)
    return tuple(path)


def _at(tree: Any, path: Keys) -> Any:
    for key in path:
        if isinstance(tree, str):
            return None
        tree = tree.get(key) if isinstance(tree, Mapping) else tree[key]
    return tree


def _describe(path: Keys, details: list[Any], model: type[BaseModel], tree: Any) -> str:
    kinds = {detail["type"] for detail in details}
    if "missing" in kinds:
        return "missing key"
    if kinds == {"extra_forbidden"}:
        return _describe_unknown(path, model, tree)
    given = _at(tree, path)
    if kinds & {"model_type", "model_attributes_type", "dict_type"} and len(kinds) == 1:
        return f"should be a mapping with the keys {', '.join(known_keys(model, path))}; given {_show(given)}"
    if "union_tag_invalid" in kinds:
        name = given.get("name") if isinstance(given, Mapping) else given
        return _with_guess(
            f"unknown name {_show(name)}", name, re.findall(r"'([^']*)'", details[0]["ctx"]["expected_tags"])
        )
    if "union_tag_not_found" in kinds:
        return "missing key 'name'"
    return _describe_value(details, given)


def _describe_unknown(path: Keys, model: type[BaseModel], tree: Any) -> str:
    parent = _at(tree, path[:-1])
    tag = parent.get("name") if isinstance(parent, Mapping) else None
    allowed = known_keys(model, path[:-1], tag)
    key = str(path[-1])
    if key in known_keys(model, path[:-1]):
        return f"belongs to another name than '{tag}' (known: {', '.join(allowed)})"
    if nearest(key, allowed) is None:
        here = ".".join(map(str, path))
        found = dict.fromkeys(_all_keys(model))
        elsewhere = [dotted for dotted in found if dotted != here and dotted.rsplit(".", 1)[-1] == key]
        if 0 < len(elsewhere) < 4:
            return f"unknown key; did you mean {' or '.join(map(repr, elsewhere))}?"
    return _with_guess("unknown key", key, allowed)


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models_in(field.annotation, lists=False):
            yield from _all_keys(inner, f"{prefix}{name}.")


def _with_guess(problem: str, given: Any, allowed: list[str]) -> str:
    hint = did_you_mean(given if isinstance(given, str) else _repr(given), allowed)
    return f"{problem}{hint} (known: {', '.join(allowed)})"


def _describe_value(details: list[Any], given: Any) -> str:
    wanted: list[str] = []
    for detail in details:
        cause = detail.get("ctx", {}).get("error")
        message = str(cause) if cause is not None else detail["msg"].removeprefix("Input ")
        if message not in wanted:
            wanted.append(message)
    text = "; or ".join(wanted)
    expected = str(details[0].get("ctx", {}).get("expected", ""))
    hint = did_you_mean(given, re.findall(r"'([^']*)'", expected)) if isinstance(given, str) else ""
    # Messages of our own checks name the value already; a section is too long to repeat.
    complete = (
        isinstance(given, Mapping)
        or _repr(given) in text
        and any(detail["type"] == "value_error" for detail in details)
    )
    return f"{text}{hint}" if complete else f"{text}; given {_show(given)}{hint}"


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = f"'{value}'" if isinstance(value, str) else _repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(text: str) -> str:
    """Return `text` on one line, cut in the middle if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= 1000 else f"{line[:300]} ... {line[-300:]}"


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return f"a {type(value).__name__} with a number of thousands of digits"
