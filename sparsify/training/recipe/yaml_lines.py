"""YAML text -> plain values, with the line that each key and list entry was written on."""

from __future__ import annotations

from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ...errors import SparsifyError
from ...validation import Keys


class Located(NamedTuple):
    """Plain values (dicts, lists, scalars) and, for each path into them, the line it was written on, from 1."""

    value: Any
    lines: dict[Keys, int]


def parse_yaml(text: str, source: str) -> Located:
    """Return the values in `text` (YAML 1.2, so that 5e-4 is a number and `off` is a word) and their lines.

    `source` names the text in errors. Raises SparsifyError, with the line, for text that is not YAML, more than one
    document, a repeated key, a key that is not a word and values other than numbers, words, true/false and null.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SparsifyError(f"{source}:{line}: not YAML: {_one_line(error.problem or error.context)}") from None
    except YAMLError as error:
        raise SparsifyError(f"{source}: not YAML: {_one_line(str(error))}") from None
    lines: dict[Keys, int] = {}
    value = None if root is None else _build(root, (), source, lines, yaml)
    return Located(value, lines)


def parse_value(text: str, source: str) -> Any:
    """Return the one value written in `text`, as YAML 1.2 reads it. Raises SparsifyError for what is not YAML."""
    return parse_yaml(text, source).value


def _build(node: Node, path: Keys, source: str, lines: dict[Keys, int], yaml: Any) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, MappingNode):
        return _build_mapping(node, path, source, lines, yaml)
    if isinstance(node, SequenceNode):
        return [_build(item, (*path, index), source, lines, yaml) for index, item in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    try:
        value = yaml.constructor.construct_object(node)
    except (YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise SparsifyError(f"{source}:{node.start_mark.line + 1}: not YAML: {_one_line(problem)}") from None
    # A date or binary value has no meaning in a recipe; it is the word that was written.
    return value if value is None or isinstance(value, str | bool | int | float) else str(node.value)


def _build_mapping(node: MappingNode, path: Keys, source: str, lines: dict[Keys, int], yaml: Any) -> Any:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            raise SparsifyError(f"{source}:{line}: a key must be a word")
        key = str(key_node.value)
        if key in mapping:
            dotted = ".".join(map(str, (*path, key)))
            first = lines[(*path, key)]
            raise SparsifyError(f"{source}:{line}: {dotted}: repeated key; it is first given on line {first}")
        lines[(*path, key)] = line
        mapping[key] = _build(value_node, (*path, key), source, lines, yaml)
    return mapping


def _one_line(text: str | None) -> str:
    return " ".join((text or "it cannot be parsed").split())
