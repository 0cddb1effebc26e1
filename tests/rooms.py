"""The imports between the package's rooms, read from the sources; `python -m tests.rooms` prints them.

A room is a sub-package (`surgery.tracing`); a module that lies beside rooms (`surgery.copies`, `ops`) is one of its
own. Imports within functions and under TYPE_CHECKING count. Left out is what the package itself imports, whose public
names are resolved when they are used, and what tables name in strings (`export/registry.py`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple, TypeAlias

Graph: TypeAlias = dict[str, set[str]]
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Import(NamedTuple):
    """One import: the modules by their dotted names within the package, and whether only a type checker follows it."""

    source: str
    target: str
    for_types: bool = False


def read_modules(root: Path) -> dict[str, Path]:
    """Return the files of the modules and packages in a package by dotted name; the package itself is ""."""
    files = {file: file.relative_to(root).with_suffix("").parts for file in sorted(root.rglob("*.py"))}
    return {".".join(part for part in parts if part != "__init__"): file for file, parts in files.items()}


def read_imports(root: Path) -> list[Import]:
    """Return what the modules of a package import from each other, each pair once per kind."""
    modules = read_modules(root)
    found: dict[Import, None] = {}
    for source, file in modules.items():
        if not source:
            continue
        package = source if file.name == "__init__.py" else source.rpartition(".")[0]
        for node, for_types in _statements(ast.parse(file.read_text()), for_types=False):
            for name in _targets(node, package, root.name):
                target = name if name in modules else name.rpartition(".")[0]
                if target in modules and target not in ("", source):
                    found[Import(source, target, for_types)] = None
    return list(found)


def room_of(module: str) -> str:
    """Return the room that a module lies in."""
    return ".".join(module.split(".")[:2])


def part_of(module: str) -> str:
    """Return the part of the package that a module lies in: what is directly below it."""
    return module.split(".")[0]


def graph_of(imports: Iterable[Import], place: Callable[[str], str] = str) -> Graph:
    """Return which places import which others; `place` tells where a module lies."""
    graph: Graph = {}
    for source, target, _ in imports:
        wanted = graph.setdefault(place(source), set())
        if place(target) != place(source):
            wanted.add(place(target))
    return graph


def find_circle(graph: Graph) -> list[str]:
    """Return the places of one circle, first and last the same; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def not_allowed(imports: Iterable[Import], allowed: Graph) -> list[Import]:
    """Return the imports of a part from another one that `allowed` does not name."""
    return [
        one
        for one in imports
        if part_of(one.target) not in allowed.get(part_of(one.source), set()) | {part_of(one.source)}
    ]


def _statements(node: ast.AST, *, for_types: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        guarded = isinstance(node, ast.If) and child in node.body and "TYPE_CHECKING" in ast.dump(node.test)
        yield child, for_types or guarded
        yield from _statements(child, for_types=for_types or guarded)


def _targets(node: ast.AST, package: str, root: str) -> Iterator[str]:
    """Yield the dotted names, within the package, of what a statement imports: modules, or names in them."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix(f"{root}.") for alias in node.names if alias.name.startswith(f"{root}."))
    if not isinstance(node, ast.ImportFrom):
        return
    if node.level:
        parts = package.split(".") if package else []
        base = parts[: len(parts) - (node.level - 1)] + (node.module.split(".") if node.module else [])
    elif node.module and part_of(node.module) == root:
        base = node.module.split(".")[1:]
    else:
        return
    yield from (".".join([*base, alias.name]) for alias in node.names)


def _report(root: Path) -> Iterator[str]:
    modules = read_modules(root)
    lines = {name: file.read_text().count("\n") for name, file in modules.items()}
    graph = graph_of(read_imports(root), room_of)
    circle = find_circle(graph)
    order = sorted(graph) if circle else list(TopologicalSorter(graph).static_order())
    yield f"circle: {' -> '.join(circle)}" if circle else "rooms, each below what imports it:"
    for room in order:
        files = [name for name in modules if name and room_of(name) == room and modules[name].name != "__init__.py"]
        size = f"{len(files)} files, {sum(lines[name] for name in files)} lines"
        yield f"{room} ({size}) -> {', '.join(sorted(graph.get(room, ()))) or 'nothing'}"
    yield "longest files:"
    yield from (f"{lines[name]:5} {name}" for name in sorted(lines, key=lines.__getitem__, reverse=True)[:10])
    functions = [
        (1 + (node.end_lineno or node.lineno) - node.lineno, f"{name}.{node.name}")
        for name, file in modules.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, _FUNCTIONS)
    ]
    yield "longest functions:"
    yield from (f"{length:5} {name}" for length, name in sorted(functions, reverse=True)[:10])


if __name__ == "__main__":
    print("\n".join(_report(Path(__file__).parents[1] / "sparsify")))
