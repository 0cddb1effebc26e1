"""The fuzz target accepts and refuses, and fails where it must."""

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

from sparsify.formats.codec.weight_encodings import Encoding


@pytest.fixture
def fuzz() -> Any:
    return importlib.import_module("benchmarks.fuzz_format")


def test_some_mutations_are_accepted_and_most_refused(fuzz: Any, tmp_path: Path) -> None:
    one_input, counts = fuzz.target(tmp_path)
    generator = random.Random(1)
    for _ in range(400):
        one_input(generator.randbytes(80))
    refused, accepted = counts
    assert accepted > 5 and refused > 200


@pytest.mark.parametrize("broken", [IndexError("out of range"), MemoryError()])
def test_any_other_error_is_a_failure_and_leaves_the_file(
    broken: Exception, fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_input, _ = fuzz.target(tmp_path)

    def decode(*_: object) -> None:
        raise broken

    monkeypatch.setattr(Encoding, "decode", decode)
    generator = random.Random(1)
    with pytest.raises(type(broken)):
        for _ in range(100):
            one_input(generator.randbytes(80))
    assert (tmp_path / "fuzz-failure.safetensors").exists()


def test_a_mask_that_does_not_hold_together_is_a_failure(
    fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fuzz.valid_file(tmp_path)
    original = Encoding.decode

    def decode(self: Encoding, *given: Any) -> Any:
        values, mask = original(self, *given)
        mask[:1] = ~mask[:1]
        return values, mask

    monkeypatch.setattr(Encoding, "decode", decode)
    with pytest.raises(AssertionError):
        fuzz.check(tmp_path / "a", whole, whole, True)
