from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts import each other as they do when they are run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
