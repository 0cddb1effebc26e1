"""YAML text -> plain values, with the line that each key and list entry was written on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ...errors import SparsifyError, one_line
from ...validation import Keys

# Many times what a recipe needs. Beyond it a text is a mistake or an attack: nested aliases expand to any number of
# values, and ruamel.yaml takes minutes for megabytes.
MOST_CHARACTERS = 100_000
MOST_VALUES = 20_000
MOST_LEVELS = 32
# What ruamel.yaml raises for a scalar whose tag does not fit its text (`!!int ""`, `!!bool x`).
_UNFIT = (YAMLError, ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)


class Located(NamedTuple):
    """Plain values (dicts, lists, scalars) and, for each path into them, its line, from 1."""

    value: Any
    lines: dict[Keys, int]


def parse_yaml(text: str, source: str) -> Located:
    """Return the values in `text` (YAML 1.2, so that 5e-4 is a number and `off` is a word) and their lines.

    `source` names the text in errors. Raises SparsifyError, with the line, for text that is not YAML, more than one
    document, a repeated key, a key that is not a word, values other than numbers, words, true/false and null, and for
    more than 100,000 characters, 20,000 values (aliases expanded) or 32 levels.
    """
    if len(text) > MOST_CHARACTERS:
        raise SparsifyError(f"{source}: too long: more than {MOST_CHARACTERS:,} characters")
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MOST_LEVELS
    try:
        root = yaml.compose(text)
    except (MaxDepthExceededError, RecursionError):
        raise SparsifyError(_too_deep(source)) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SparsifyError(
            f"{source}:{line}: not YAML: {one_line(error.problem or error.context or 'it cannot be parsed', 200)}"
        ) from None
    except YAMLError as error:
        raise SparsifyError(f"{source}: not YAML: {one_line(error, 200)}") from None
    reading = _Reading(source, yaml)
    value = None if root is None else reading.build(root, ())
    return Located(value, reading.lines)


def parse_value(text: str, source: str) -> Any:
    """Return the one value written in `text`, as YAML 1.2 reads it. Raises SparsifyError for what is not YAML."""
    return parse_yaml(text, source).value


@dataclass
class _Reading:
    """Conversion of a text's nodes to plain values, which collects their lines and counts them."""

    source: str
    yaml: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    values: int = 0

    def build(self, node: Node, path: Keys) -> Any:
        """Return the plain value of a node and record the line of each key below `path`; SparsifyError at a mistake."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise SparsifyError(f"{self.source}: too long: more than {MOST_VALUES:,} values, aliases written out")
        if len(path) > MOST_LEVELS:
            raise SparsifyError(_too_deep(self.source))
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node)

    def _scalar(self, node: ScalarNode) -> Any:
        where = f"{self.source}:{node.start_mark.line + 1}"
        try:
            value = self.yaml.constructor.construct_object(node)
        except _UNFIT as error:
            problem = getattr(error, "problem", None) or (
                str(error) if isinstance(error, YAMLError | ValueError) else ""
            )
            reason = one_line(problem or f"'{node.value:.40}' does not fit its tag {node.tag}", 200)
            raise SparsifyError(f"{where}: not YAML: {reason}") from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise SparsifyError(f"{where}: {node.value:.40} is too large; whole numbers are below 2^63")
        # A date or binary value has no meaning in a recipe; it is taken as text.
        return value if value is None or isinstance(value, str | bool | int | float) else str(node.value)

    def _mapping(self, node: MappingNode, path: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                raise SparsifyError(f"{self.source}:{line}: a key must be a word")
            key = str(key_node.value)
            if key in mapping:
                dotted = ".".join(map(str, (*path, key)))
                first = self.lines[(*path, key)]
                raise SparsifyError(f"{self.source}:{line}: {dotted}: repeated key; it is first given on line {first}")
            self.lines[(*path, key)] = line
            mapping[key] = self.build(value_node, (*path, key))
        return mapping


def _too_deep(source: str) -> str:
    return f"{source}: nested too deeply: more than {MOST_LEVELS} levels"
