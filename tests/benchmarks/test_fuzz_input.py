"""The fuzzers of input run, find both kinds of input, and tell a fault."""

import random
from pathlib import Path

import pytest

from benchmarks import fuzz_input
from benchmarks.mutations import Bytes
from sparsify.errors import SparsifyError


@pytest.mark.parametrize(("kind", "count"), [("recipes", 20), ("checkpoints", 60), ("masks", 60)])
def test_mutations_are_refused_or_hold_together(kind: str, count: int, tmp_path: Path) -> None:
    one_input, generator, refused = getattr(fuzz_input, kind)(tmp_path), random.Random(3), 0
    for _ in range(count):
        try:
            assert one_input(Bytes(generator.randbytes(160)))
        except SparsifyError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > count / 2


def test_a_fault_ends_it_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(draw: Bytes) -> bool:
        raise ZeroDivisionError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fuzz_input.fuzz("broken", broken, 5, random.Random(0))
    assert (tmp_path / "fuzz-failure").read_text().startswith("broken ")
