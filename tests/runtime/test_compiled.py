"""What the cache of compiled code asks for."""

import ast
import shutil
from pathlib import Path

import pytest

from sparsify.runtime import compiled
from sparsify.runtime.compiled import SOURCES, fingerprint, njit

FOLDER = Path(compiled.__file__).parent


def test_every_file_that_compiled_code_is_made_of_counts() -> None:
    made = {path.stem for path in FOLDER.glob("*.py") if "njit" in path.read_text() or "@intrinsic" in path.read_text()}
    for name in list(made):
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                made |= {node.module} if node.module else {alias.name for alias in node.names}
    assert made == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_the_fingerprint_changes_with_each_of_them(name: str, tmp_path: Path) -> None:
    for source in SOURCES:
        shutil.copy(FOLDER / f"{source}.py", tmp_path)
    assert fingerprint(tmp_path) == fingerprint()
    with (tmp_path / f"{name}.py").open("a") as file:
        file.write("# more\n")
    assert fingerprint(tmp_path) != fingerprint()


def test_functions_are_told_apart_by_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(x: int) -> int:
        """Return twice x."""
        return 2 * x

    one = njit()(double)
    monkeypatch.setattr(compiled, "_FINGERPRINT", b"other")
    two = njit()(double)
    assert one(3) == two(3) == 6
    assert one.__doc__ == "Return twice x."
    held = [[cell.cell_contents for cell in each.py_func.__closure__] for each in (one, two)]
    assert held == [[fingerprint()], [b"other"]]
