"""Write docs/reference/recipe.md, every key of a recipe, and recipes/recipe.schema.json, for editors.

    python -m tools.recipe_keys

Both follow from the sections of `sparsify.training.recipe`; a test fails when they are not current.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsify.training.recipe.read import recipe_schema

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "recipe.md"
SCHEMA = ROOT / "recipes" / "recipe.schema.json"
Node = dict[str, Any]

_INTRODUCTION = """\
# Every key of a recipe

Written by `python -m tools.recipe_keys` from the code that reads recipes: do not edit this page. What a recipe is, with
an example, is on the page [recipes](../recipes.md).

A section that has a `name` may be written as its name alone: `data: digits`. A *time* is a fraction of training in
[0, 1], epochs (`"20ep"`) or optimiser steps (`"5000it"`). On the command line a key is `--set train.optimizer.lr=0.05`.
A dash in place of a default means that the key may be left out; what happens then is in its description.
"""


def main() -> None:
    """Write both files."""
    PAGE.write_text(page())
    SCHEMA.write_text(schema_text())


def schema_text() -> str:
    """Return the JSON schema of recipes as `sparsify recipe-schema` prints it."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


def page() -> str:
    """Return the page: a table for each section, in the order in which recipes have them."""
    schema = recipe_schema()
    return _INTRODUCTION + "\n" + "\n".join(_section("", schema, schema["$defs"]))


def _section(where: str, node: Node, defs: Node) -> Iterator[str]:
    """Yield the lines on a section and, after it, on those within it."""
    if where:
        yield f"## {where}\n"
        yield f"{_sentence(node.get('description', ''))}\n"
    else:
        yield "## At the top\n"
    yield "| key | type | default | |\n|---|---|---|---|"
    inner = []
    for key, value in node["properties"].items():
        sections = _objects(value, defs)
        path = f"{where}.{key}" if where else key
        kind = _link(path, sections) if sections else _type(value, defs)
        text = value.get("description") or (sections[0].get("description", "") if len(sections) == 1 else "")
        yield f"| `{key}` | {kind} | {_default(key, node, value, bool(sections))} | {_cell(text)} |"
        for section in () if path.startswith("prune.rules.") else sections:  # prune has them already
            name = section["properties"].get("name", {}).get("const") if len(sections) > 1 else None
            inner.append((f"{path}: {name}" if name else path, section))
    yield ""
    for path, section in inner:
        yield from _section(path, section, defs)


def _objects(value: Node, defs: Node) -> list[Node]:
    """Return the sections that may stand for a key: several for a choice by name, none for plain values."""
    value = _resolved(value, defs)
    if "properties" in value:
        return [value]
    branches = [*value.get("anyOf", []), *value.get("oneOf", [])]
    if value.get("type") == "array" and "properties" in _resolved(value.get("items", {}), defs):
        branches = [value["items"]]
    return [found for branch in branches for found in _objects(branch, defs)]


def _resolved(value: Node, defs: Node) -> Node:
    if "$ref" in value:
        return {**defs[value["$ref"].rpartition("/")[2]], **{k: v for k, v in value.items() if k != "$ref"}}
    return value


def _link(path: str, sections: list[Node]) -> str:
    kind = "list of sections" if path.endswith("rules") else "section"
    if len(sections) > 1:
        return f"{kind}, by `name`"
    return f"[{kind}](#{path.replace('.rules.', '').replace('.', '')})"


def _type(value: Node, defs: Node) -> str:
    value = _resolved(value, defs)
    branches = [branch for branch in [*value.get("anyOf", []), *value.get("oneOf", [])] if branch.get("type") != "null"]
    if branches:
        kinds = list(dict.fromkeys(_type(branch, defs) for branch in branches))
        return "time" if any("ep|it" in branch.get("pattern", "") for branch in branches) else " or ".join(kinds)
    if "enum" in value or "const" in value:
        return ", ".join(f"`{_plain(choice)}`" for choice in value.get("enum", [value.get("const")]))
    kind = {"integer": "whole number", "boolean": "true or false", "object": "keys and values"}
    name = str(value.get("type", "value"))
    if name == "array" and "enum" in value.get("items", {}):
        return f"list of {_type(value['items'], defs)}"
    if name == "array":
        item = _type(value.get("items", {}), defs).partition(",")[0]
        return f"list of {item}" if item == "text" else f"list of {item}s"
    return kind.get(name, {"string": "text"}.get(name, name)) + _bounds(value)


def _bounds(value: Node) -> str:
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    if high is not None and high < 1e6:
        left, right = ("(" if "exclusiveMinimum" in value else "["), (")" if "exclusiveMaximum" in value else "]")
        return f" in {left}{low:g}, {high:g}{right}"
    return f" > {low:g}" if "exclusiveMinimum" in value else f", at least {low:g}"


def _default(key: str, node: Node, value: Node, section: bool) -> str:
    if key in node.get("required", []):
        return "required"
    default = value.get("default")
    if section and isinstance(default, dict):
        default = default.get("name")
    if default is None or default in ([], {}):
        return "-"
    return f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith(".") else f"{text[:1].upper()}{text[1:]}."


if __name__ == "__main__":
    main()
