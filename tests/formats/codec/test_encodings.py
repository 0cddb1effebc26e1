"""What holds of every row of ENCODINGS, and that the smallest is chosen."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.export.save import inspect_file, load, read_state, save
from sparsify.formats.codec.weight_encodings import ENCODINGS, Choice, choose
from sparsify.formats.model.dtypes import TORCH_DTYPES
from sparsify.formats.types import Array, Shape
from tests.formats.file.example_reader import read_sparsify
from tests.formats.model.test_round_trip import random_bits
from tests.formats.toys import UNSIGNED, Holder, Standardised, holder, same_bits

SHAPES: list[Shape] = [(), (7,), (8, 6), (3, 5, 4), (8, 6, 3, 3), (2, 4, 3, 2, 3), (0, 4), (3, 0, 2)]
PATTERNS: dict[str, Callable[[Shape], Array]] = {
    "none kept": lambda shape: np.zeros(shape, np.bool_),
    "all kept": lambda shape: np.ones(shape, np.bool_),
    "one kept": lambda shape: np.arange(np.prod(shape, dtype=int)).reshape(shape) == 5,
    "one removed": lambda shape: np.arange(np.prod(shape, dtype=int)).reshape(shape) != 5,
    "few kept": lambda shape: np.asarray(np.random.default_rng(0).random(shape) < 0.1),
    "half kept": lambda shape: np.asarray(np.random.default_rng(1).random(shape) < 0.5),
    "every second column": lambda shape: np.broadcast_to(np.arange((1, *shape)[-1]) % 2 == 0, (1, *shape))[0],
    "a quarter of the units": lambda shape: corner(shape, True),
    "some of a quarter of the units": lambda shape: corner(shape, np.random.default_rng(2).random(shape) < 0.4),
}


def mask_of(name: str, shape: Shape) -> Array:
    """Return a mask of the table, an array of its own."""
    return np.array(PATTERNS[name](shape))


def corner(shape: Shape, inside: bool | Array) -> Array:
    """Return a mask that keeps `inside` where the indices of the first two dimensions are odd, nothing elsewhere."""
    odd = [index % 2 == 1 for index in np.indices(shape)[:2]]
    return np.logical_and.reduce([np.broadcast_to(inside, shape), *odd])


def tellable(encoding: str) -> Iterator[tuple[str, Shape]]:
    """Yield the masks of the table that an encoding can tell."""
    for name in PATTERNS:
        for shape in SHAPES:
            if ENCODINGS[encoding].codec.encode(mask_of(name, shape).reshape(-1), shape) is not None:
                yield name, shape


def force(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Have the writer use this encoding."""

    def forced(name: str, mask: Array, shape: Shape, width: int, *, raw: bool = False) -> Choice:
        row = ENCODINGS[encoding]
        return Choice(encoding, shape, None if row.suffix is None else row.codec.encode(mask, shape))

    monkeypatch.setattr("sparsify.formats.model.stored_tensors.choose", forced)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_mask_that_an_encoding_can_tell_comes_back_bit_for_bit(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, encoding)
    told = list(tellable(encoding))
    assert len(told) > 5
    for number, (name, shape) in enumerate(told):
        dtype = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float8_e5m2][number % 5]
        weight, mask = random_bits(shape, dtype, number), torch.from_numpy(mask_of(name, shape))
        model = (Standardised if encoding == "raw" else Holder)(weight, mask)
        save(model, tmp_path / "a")
        assert_comes_back(tmp_path / "a", model, encoding)


def assert_comes_back(path: Path, model: Holder, encoding: str) -> None:
    weight, mask = model.weight.detach(), model.weight_mask
    expected = weight.clone()
    if encoding != "raw":
        expected = expected.contiguous()
        expected.view(UNSIGNED[weight.element_size()])[~mask] = 0
    state, masks, _ = read_state(path)
    assert same_bits(state["weight"], expected) and torch.equal(masks["weight"], mask)
    other = Holder(torch.zeros_like(weight), torch.ones_like(mask))
    assert same_bits(load(path, other).get_parameter("weight"), expected)
    row = inspect_file(path).rows[0]
    assert (row.encoding, row.kept, row.shape) == (encoding, int(mask.sum()), tuple(mask.shape))
    tensors, own_masks, _ = read_sparsify.read(path)
    assert np.array_equal(own_masks["weight"], mask.numpy())
    assert tensors["weight"].shape == tuple(weight.shape)
    assert tensors["weight"].tobytes() == bytes(expected.reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", [dtype for dtype in TORCH_DTYPES.values() if dtype.is_floating_point], ids=str)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_type_and_memory_layout_comes_back(
    encoding: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, encoding)
    shape = (8, 6, 2, 2)
    told = {"full": "all kept", "units": "a quarter of the units", "delta": "few kept"}
    name = told.get(encoding, "every second column")
    weight = random_bits((2, 2, 6, 8), dtype, 3).permute(3, 2, 0, 1)
    mask = torch.from_numpy(mask_of(name, shape)).contiguous(memory_format=torch.channels_last)
    model = (Standardised if encoding == "raw" else Holder)(weight, mask)
    save(model, tmp_path / "a")
    assert_comes_back(tmp_path / "a", model, encoding)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("mask", PATTERNS)
def test_the_smallest_of_all_encodings_is_chosen(
    mask: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = {1: torch.float8_e4m3fn, 2: torch.float16, 4: torch.float32}[width]
    for shape in [*SHAPES, (24, 40, 3), (1000,)]:
        model = Holder(random_bits(shape, dtype, 0), torch.from_numpy(mask_of(mask, shape)))
        chosen = save(model, tmp_path / "chosen")
        sizes = []
        for encoding, row in ENCODINGS.items():
            if row.values != "all" and row.codec.encode(mask_of(mask, shape).reshape(-1), shape) is not None:
                force(monkeypatch, encoding)
                sizes.append(save(model, tmp_path / encoding))
                monkeypatch.undo()
        # A header is padded to 8 bytes; how many digits the offsets have is not known beforehand.
        assert len(sizes) > 1 and chosen <= min(sizes) + 16, shape


def test_hand_worked_choices() -> None:
    def chosen(mask: Array, raw: bool = False) -> str:
        return choose("w", mask.reshape(-1), mask.shape, 4, raw=raw).encoding

    generator = np.random.default_rng(0)
    assert chosen(np.ones((50, 20), np.bool_)) == "full"
    assert chosen(generator.random((50, 20)) < 0.5) == "bitmask"
    assert chosen(generator.random((50, 20)) < 0.1) == "delta"
    assert chosen(generator.random((500, 20)) < 0.95) == "delta"
    assert chosen(np.arange(40) != 7) == "whole"
    assert chosen(np.argsort(generator.random((50, 20, 4)), axis=2) < 2) == "n:m"
    assert chosen(corner((100, 40, 9), True)) == "units"
    assert chosen(np.ones(9, np.bool_), raw=True) == "raw"


def test_no_file_is_notably_larger_than_the_dense_one(tmp_path: Path) -> None:
    for keep in (0.0, 0.5, 0.9, 0.99, 0.9999, 2.0):
        for dtype in (torch.float32, torch.float16, torch.float8_e4m3fn):
            model = holder((100, 300), keep)
            model.weight.data = model.weight.to(dtype)
            assert save(model, tmp_path / "a") < 30_000 * dtype.itemsize + 500


def test_positions_cost_little_more_than_they_must(tmp_path: Path) -> None:
    for sparsity in (0.8, 0.9, 0.95, 0.98):
        for dtype, most in ((torch.float32, 1.01), (torch.float16, 1.015)):
            model = holder((1000, 400), 1 - sparsity)
            model.weight.data = model.weight.to(dtype)
            save(model, tmp_path / "a")
            row = inspect_file(tmp_path / "a").rows[0]
            assert row.bytes_limit is not None and row.bytes_stored < most * row.bytes_limit


masks = st.builds(
    lambda shape, name, seed: (
        tuple(shape),
        mask_of(name, tuple(shape)) ^ (np.random.default_rng(seed).random(shape) < 0.02),
    ),
    st.lists(st.integers(1, 9), max_size=4),
    st.sampled_from(sorted(PATTERNS)),
    st.integers(0, 99),
)


@settings(max_examples=300, deadline=None)
@given(drawn=masks, encoding=st.sampled_from(sorted(ENCODINGS)), data=st.data())
def test_altered_bytes_are_an_error_or_a_mask_of_the_number_stored(
    drawn: tuple[Shape, Array], encoding: str, data: st.DataObject
) -> None:
    shape, mask = drawn
    mask = mask.reshape(-1)
    positions, kept = ENCODINGS[encoding].codec, int(mask.sum())
    stream = positions.encode(mask, shape)
    if stream is None:
        return
    assert np.array_equal(positions.decode(stream, shape, kept), mask)
    how = data.draw(st.sampled_from(["byte", "short", "long", "shape", "kept"]))
    altered, other_shape, other_kept = stream.copy(), shape, kept
    if how == "byte" and stream.size:
        altered[data.draw(st.integers(0, stream.size - 1))] = data.draw(st.integers(0, 255))
    elif how == "short":
        altered = stream[: data.draw(st.integers(0, stream.size))]
    elif how == "long":
        altered = np.append(stream, np.frombuffer(data.draw(st.binary(min_size=1, max_size=9)), np.uint8))
    elif how == "shape":
        other_shape = tuple(data.draw(st.lists(st.integers(0, 2**20), max_size=3)))
    else:
        other_kept = data.draw(st.integers(0, 2**40))
    tracemalloc.start()
    try:
        found = positions.decode(altered, other_shape, other_kept)
    except ValueError as error:
        assert "\n" not in str(error)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    else:
        assert found.shape == (int(np.prod(other_shape)),) and found.sum() == other_kept
    finally:
        tracemalloc.stop()


def test_blocks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bitpack", "rice"):
        monkeypatch.setattr(f"sparsify.formats.codec.{module}.BLOCK", 16)
    generator = np.random.default_rng(0)
    for size in (63, 64, 65, 200, 333):
        for keep in (0.0, 0.02, 0.1, 0.98, 1.0):
            mask, values = generator.random(size) < keep, generator.integers(1, 9, size, dtype=np.uint32)
            row = ENCODINGS["delta"]
            stream = row.codec.encode(mask, (size,))
            assert stream is not None
            decoded = row.decode({".kept": row.content(values, mask), ".gaps": stream}, (size,))
            assert np.array_equal(decoded[0], values * mask) and np.array_equal(decoded[1], mask)


def test_memory_is_the_dense_tensors_and_little_more_than_one_stored_one(tmp_path: Path) -> None:
    for keep in (0.05, 0.2, 0.5, 0.9):
        model = holder((1000, 2000), keep)
        dense, mask, blocks = 8_000_000, 2_000_000, 2_000_000
        tracemalloc.start()
        save(model, tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < dense + blocks
        tracemalloc.reset_peak()
        read_state(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < dense + mask + dense + blocks
        tracemalloc.stop()
