import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sparsify
from sparsify.errors import RunError, SparsifyError, nearest, unknown

from .rooms import Graph, Import, find_circle, graph_of, not_allowed, part_of, read_imports, room_of

ROOT = Path(sparsify.__file__).parent
# Dependencies point one way: what each part of the library may import from the others.
ALLOWED: Graph = {
    "calls": {"errors"},
    "errors": set(),
    "arguments": {"errors"},
    "ops": {"errors", "processes"},
    "quantities": set(),
    "datasets": set(),
    "hardware": set(),
    "hub_log": set(),
    "overlap": {"errors"},
    "preprocess": {"errors"},
    "preserve": set(),
    "processes": {"errors"},
    "validation": {"errors"},
    "relative_error": set(),
    "cifar": {"errors"},
    "surgery": {"arguments", "calls", "errors", "ops", "preserve", "processes", "quantities", "relative_error"},
    "models": {"arguments", "errors", "cifar", "hub_log", "transformers_models", "weights"},
    "transformers_models": {"errors"},
    "declared_inputs": {"calls"},
    "weights": {"errors", "formats", "surgery"},
    "start": {"errors", "formats", "surgery", "weights"},
    "tables": {"quantities"},
    "layer_summary": set(),
    "model_summary": {"arguments", "layer_summary", "formats", "quantities", "surgery", "tables"},
    "pruning": {
        "arguments",
        "calls",
        "errors",
        "formats",
        "ops",
        "preserve",
        "processes",
        "quantities",
        "surgery",
        "tables",
        "validation",
    },
    "formats": {
        "arguments",
        "errors",
        "hub_log",
        "ops",
        "preserve",
        "surgery",
        "models",
        "quantities",
        "transformers_models",
    },
    "runtime": {"arguments", "calls", "errors", "hardware", "ops", "preserve", "relative_error", "surgery", "formats"},
    "export": {
        "transformers_models",
        "arguments",
        "calls",
        "errors",
        "datasets",
        "preprocess",
        "preserve",
        "processes",
        "relative_error",
        "quantities",
        "surgery",
        "formats",
        "runtime",
    },
    "training": {
        "errors",
        "ops",
        "datasets",
        "hardware",
        "hub_log",
        "preprocess",
        "preserve",
        "processes",
        "start",
        "validation",
        "surgery",
        "models",
    }
    | {"arguments", "weights", "quantities", "formats", "pruning", "export", "overlap"},
    "report": {
        "arguments",
        "errors",
        "export",
        "formats",
        "layer_summary",
        "model_summary",
        "models",
        "overlap",
        "pruning",
        "quantities",
    }
    | {"surgery", "training"},
    "integrations": {"arguments", "errors", "processes", "pruning", "surgery"},
    "sweep": {"errors", "formats", "report", "training"},
}


@pytest.mark.parametrize("name", sparsify.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sparsify, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sparsify' has no attribute 'convrt'"):
        _ = sparsify.convrt  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, sparsify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_parts_of_the_package_import_only_what_they_may() -> None:
    imports = read_imports(ROOT)
    assert {part_of(one.source) for one in imports} <= ALLOWED.keys()
    assert not_allowed(imports, ALLOWED) == []


def test_rooms_import_each_other_in_no_circle() -> None:
    graph = graph_of(read_imports(ROOT), room_of)
    assert graph["surgery.rules"] >= {"surgery.analysis", "surgery.recording"}
    assert find_circle(graph) == []


def test_a_room_has_at_most_twelve_files() -> None:
    rooms = {file.parent for file in ROOT.rglob("__init__.py")} - {ROOT}
    counts = {str(room.relative_to(ROOT)): len(list(room.glob("[!_]*.py"))) for room in rooms}
    assert {room: count for room, count in counts.items() if count > 12} == {}


def test_modules_import_each_other_in_no_circle_when_they_run() -> None:
    assert find_circle(graph_of(one for one in read_imports(ROOT) if not one.for_types)) == []


def test_the_library_knows_nothing_of_the_command_line() -> None:
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"cli", "click", "rich"}, file.name


def _package(root: Path, **sources: str) -> list[Import]:
    """Return the imports of a made-up package with parts `low` and `high`, each of a room and a module beside it."""
    names = ("low.room.a", "low.room.b", "low.beside", "high.room.a", "high.beside")
    for name in names:
        file = root.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").touch()
        file.write_text(sources.get(name.replace(".", "_"), ""))
    return read_imports(root)


@pytest.mark.parametrize(
    "back",
    [
        "from .room.b import name",
        "from .room import b",
        "from ..low.room.b import name",
        "from made.low.room.b import name",
        "import made.low.room.b",
        "def f():\n    from .room.b import name",
        "if TYPE_CHECKING:\n    from .room.b import name",
        "if typing.TYPE_CHECKING:\n    from .room.b import name",
        "try:\n    from .room.b import name\nexcept ImportError:\n    pass",
        "class C:\n    def f(self):\n        from .room import b",
    ],
)
def test_a_circle_of_rooms_is_found_however_it_is_imported(back: str, tmp_path: Path) -> None:
    one_way = _package(tmp_path / "made", low_room_a="from ..beside import name")
    assert find_circle(graph_of(one_way, room_of)) == []
    # No circle of modules: a -> beside -> b. But a and b are one room.
    both = _package(tmp_path / "made", low_room_a="from ..beside import name", low_beside=back)
    assert find_circle(graph_of(both)) == []
    assert {*find_circle(graph_of(both, room_of))} == {"low.room", "low.beside"}


@pytest.mark.parametrize(
    "up",
    [
        "from ...high.beside import name",
        "from ...high import beside",
        "from ... import high",
        "def f():\n    from ...high.room import a",
        "if TYPE_CHECKING:\n    from ...high.room.a import name",
    ],
)
def test_an_import_of_a_part_above_is_found(up: str, tmp_path: Path) -> None:
    allowed: Graph = {"low": set(), "high": {"low"}}
    down = {"high_room_a": "from ...low.room.a import name", "high_beside": "from ..low import beside"}
    assert not_allowed(_package(tmp_path / "made", **down), allowed) == []
    [found] = not_allowed(_package(tmp_path / "made", **down, low_room_b=up), allowed)
    assert found.source == "low.room.b" and part_of(found.target) == "high"


def test_a_circle_of_modules_that_run_is_told_from_one_of_types(tmp_path: Path) -> None:
    for there, circle in (("def f():\n    ", True), ("if TYPE_CHECKING:\n    ", False)):
        imports = _package(tmp_path / "made", low_room_a="from .b import x", low_room_b=f"{there}from .a import x")
        assert bool(find_circle(graph_of(one for one in imports if not one.for_types))) == circle
        assert find_circle(graph_of(imports))


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    files = [*ROOT.rglob("__init__.py"), *(ROOT.parent / "cli").rglob("__init__.py")]
    there = [file.parent.relative_to(ROOT.parent).parts for file in files]
    assert sorted(listed) == sorted(
        ".".join(parts if parts[0] == "sparsify" else ("sparsify", *parts)) for parts in there
    )


def test_errors_know_their_exit_code_and_the_nearest_word() -> None:
    assert (SparsifyError.exit_code, RunError.exit_code) == (2, 1)
    assert nearest("magnitud", ["magnitude", "random"]) == "magnitude"
    assert nearest("MODEL", ["train", "model"]) == "model"  # people hold down shift
    assert nearest("fc.weight", ["FC.weight", "fc.weight"]) == "FC.weight"
    assert nearest("zzz", ["magnitude"]) is None
    message = str(unknown("criterion", "randm", ["random", "magnitude"], where="recipe.yaml:3"))
    assert message == "recipe.yaml:3: unknown criterion 'randm'; did you mean 'random'? (known: magnitude, random)"
