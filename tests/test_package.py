import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sparsify
from sparsify.errors import RunError, SparsifyError, nearest, unknown

ROOT = Path(sparsify.__file__).parent
# Dependencies point one way: what each part of the library may import from the others.
ALLOWED = {
    "errors": set(),
    "ops": {"errors"},
    "quantities": set(),
    "datasets": set(),
    "preserve": set(),
    "validation": {"errors"},
    "cifar": {"errors"},
    "surgery": {"errors", "ops"},
    "models": {"errors", "cifar", "weights"},
    "weights": {"errors", "formats", "surgery"},
    "pruning": {"errors", "ops", "preserve", "surgery", "validation"},
    "formats": {"errors", "ops", "surgery", "models", "quantities"},
    "runtime": {"errors", "surgery", "formats"},
    "training": {
        "errors",
        "ops",
        "surgery",
        "models",
        "weights",
        "formats",
        "pruning",
        "datasets",
        "preserve",
        "validation",
        "export",
    },
}
# Tables whose rows are imported when they are asked for.
ROWS = {"ways_out.py": {"runtime"}}


@pytest.mark.parametrize("name", sparsify.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sparsify, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sparsify' has no attribute 'convrt'"):
        _ = sparsify.convrt  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, sparsify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_dependencies_point_one_way() -> None:
    for file in ROOT.rglob("*.py"):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        depth = len(file.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                targets = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                allowed = ALLOWED[part] | ROWS.get(file.name, set()) | {part, "__version__"}
                assert set(targets) <= allowed, (file.name, targets)
            assert not (
                isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("cli", "click", "rich")
            )


def test_errors_know_their_exit_code_and_the_nearest_word() -> None:
    assert (SparsifyError.exit_code, RunError.exit_code) == (2, 1)
    assert nearest("magnitud", ["magnitude", "random"]) == "magnitude"
    assert nearest("zzz", ["magnitude"]) is None
    message = str(unknown("criterion", "randm", ["random", "magnitude"], where="recipe.yaml:3"))
    assert message == "recipe.yaml:3: unknown criterion 'randm'; did you mean 'random'? (known: magnitude, random)"
