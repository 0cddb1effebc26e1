import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from sparsify import namesake


@pytest.fixture(autouse=True)
def as_in_a_fresh_process() -> Iterator[None]:
    namesake.warn_of_namesake.cache_clear()
    yield
    namesake.warn_of_namesake.cache_clear()


def test_the_other_tool_of_that_name_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namesake, "distribution", lambda name: SimpleNamespace(version="1.7.0"))
    with pytest.warns(UserWarning, match=r"another tool called sparsify \(1\.7\.0\) is installed as well") as caught:
        namesake.warn_of_namesake()
        namesake.warn_of_namesake()
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_nothing_is_said_of_this_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        assert name == "sparsify"  # this one is sparsify-torch
        raise PackageNotFoundError(name)

    monkeypatch.setattr(namesake, "distribution", missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        namesake.warn_of_namesake()
