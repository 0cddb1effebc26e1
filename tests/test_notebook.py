"""The notebook runs from top to bottom, with a short training, and leaves no error behind."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pages import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "union_mask_colab.ipynb"


def sources(kind: str) -> dict[str, str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == kind}


def test_it_is_stored_without_outputs_and_its_code_compiles() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    for name, code in sources("code").items():
        compile(code.replace("%pip", "pass  # %pip"), name, "exec")


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(find_spec(name) is None for name in ("nbclient", "nbformat", "ipykernel", "matplotlib")):
        pytest.skip("needs nbclient, nbformat, ipykernel and matplotlib: pip install '.[notebook]'")
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other take long beside other tests
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    text = NOTEBOOK.read_text()
    assert text.count('"EPOCHS = 40\\n"') == 1
    notebook = nbformat.reads(text.replace("EPOCHS = 40", "EPOCHS = 2"), as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "union    seed 1: accuracy" in told and "bytes, dense" in told
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    assert (tmp_path / "runs" / "union-1" / "masks" / "cycle-1.safetensors").is_file()
