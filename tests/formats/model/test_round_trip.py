"""Effective weights and masks come back bit for bit, whatever the type, the shape, the values and the sparsity."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsify.export.save import inspect_file, load, read_state, save
from sparsify.formats.model.dtypes import TORCH_DTYPES
from tests.formats.toys import UNSIGNED, Holder, Standardised, same_bits

FLOATS = [dtype for dtype in TORCH_DTYPES.values() if dtype.is_floating_point]
DENSITIES = st.sampled_from([0.0, 0.03, 0.5, 0.9, 0.99, 1.0])


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all: NaNs with payloads, infinities, negative zeros and subnormals among them."""
    generator = np.random.default_rng(seed)
    width = torch.empty((), dtype=dtype).element_size()
    size = int(np.prod(shape, dtype=np.int64))
    content = generator.integers(0, 2 ** (8 * width) - 1, size=size, dtype=f"u{width}", endpoint=True)
    special = generator.random(size) < 0.3
    edges = np.array([0, 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1, 2 ** (8 * width - 1) - 1], dtype=content.dtype)
    content[special] = generator.choice(edges, special.sum())
    signed = torch.from_numpy(content.view(f"i{width}" if width > 1 else "u1"))
    return signed.view(dtype).reshape(shape)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), max_size=5).map(tuple),
    dtype=st.sampled_from(FLOATS),
    density=DENSITIES,
    seed=st.integers(0, 2**32 - 1),
    raw=st.booleans(),
)
def test_any_weight_and_mask_come_back_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, seed: int, raw: bool
) -> None:
    weight = random_bits(shape, dtype, seed)
    mask = torch.from_numpy(np.asarray(np.random.default_rng(seed + 1).random(shape) < density))
    expected = weight.clone()
    if not raw:
        expected.view(UNSIGNED[weight.element_size()])[~mask] = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model = Standardised(weight, mask) if raw else Holder(weight, mask)
        size = save(model, path)
        assert size == path.stat().st_size
        state, masks, metadata = read_state(path)
        assert metadata.format == "sparse"
        assert list(state) == list(masks) == ["weight"]
        assert (inspect_file(path).rows[0].encoding == "raw") == raw
        assert same_bits(state["weight"], expected)
        assert torch.equal(masks["weight"], mask)
        other = Holder(torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=torch.bool))
        assert load(path, other) is other
        assert same_bits(other.weight, expected)
        assert torch.equal(other.weight_mask, mask)


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_a_tensor_without_a_mask_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Module()
    values = random_bits((3, 1, 5), dtype, 0) if dtype != torch.bool else torch.rand(3, 1, 5) < 0.5
    model.register_buffer("values", values)
    model.register_buffer("scalar", values[0, 0, 0].clone())
    model.register_buffer("empty", values[:0])
    save(model, tmp_path / "a")
    state, masks, _ = read_state(tmp_path / "a")
    assert not masks
    assert all(same_bits(state[name], tensor) for name, tensor in model.state_dict().items())
    assert list(state) == list(model.state_dict())


def test_nan_payload_and_negative_zero_are_kept_and_removed_entries_are_positive_zero(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC12345, -0x80000000, 0x7FC00001, -0x80000000, *[7] * 20], dtype=torch.int32)
    mask = torch.tensor([True, True, False, False, *[False] * 20])
    save(Holder(bits.view(torch.float32), mask), tmp_path / "a")
    assert inspect_file(tmp_path / "a").rows[0].encoding in ("bitmask", "delta")
    back = read_state(tmp_path / "a").state["weight"].view(torch.int32).tolist()
    assert back == [0x7FC12345, -0x80000000, *[0] * 22]


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels_last"])
def test_a_weight_that_is_not_contiguous_is_stored_in_c_order(layout: str, tmp_path: Path) -> None:
    values = torch.randn(6, 4, 2, 2)
    weight = {
        "transposed": values.transpose(0, 1),
        "strided": values[::2, 1:],
        "expanded": values[:1].expand(6, 4, 2, 2),
        "channels_last": values.contiguous(memory_format=torch.channels_last),
    }[layout]
    mask = (torch.rand(weight.shape[::-1]) < 0.5).permute(3, 2, 1, 0)
    save(Holder(weight, mask), tmp_path / "a")
    state, masks, _ = read_state(tmp_path / "a")
    assert torch.equal(state["weight"], weight * mask)
    assert torch.equal(masks["weight"], mask)


def test_values_under_the_mask_are_in_the_file_only_where_the_forward_needs_them(tmp_path: Path) -> None:
    weight, mask = torch.full((64,), 3.5), torch.arange(64) < 8
    weight[mask] = 1.0
    save(Holder(weight, mask), tmp_path / "plain")
    save(Standardised(weight, mask), tmp_path / "raw")
    secret = np.float32(3.5).tobytes()
    assert (tmp_path / "plain").read_bytes().count(secret) == 0
    assert (tmp_path / "raw").read_bytes().count(secret) == 56
    state, masks, _ = read_state(tmp_path / "raw")
    assert torch.equal(state["weight"], weight)
    assert torch.equal(masks["weight"], mask)


def test_whole_values_are_stored_where_that_is_smaller_and_plain_readers_see_the_effective_weight(
    tmp_path: Path,
) -> None:
    weight = torch.randn(40)
    mask = torch.arange(40) != 7
    save(Holder(weight, mask), tmp_path / "a")
    assert set(load_file(tmp_path / "a")) == {"weight", "weight.mask"}
    assert torch.equal(load_file(tmp_path / "a")["weight"], weight * mask)


def test_size_is_kept_values_plus_few_bits_for_each_plus_a_header(tmp_path: Path) -> None:
    weight, mask = torch.randn(100, 100), torch.zeros(100, 100, dtype=torch.bool)
    mask.view(-1)[torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:1000]] = True
    size = save(Holder(weight, mask), tmp_path / "a")
    # The limit is H(0.1) / 0.1 = 4.69 bits for each.
    assert 1000 * 4 + 1000 * 4.69 / 8 < size < 1000 * 4 + 1000 * 5 / 8 + 500


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = Holder(torch.randn(9, 9, generator=generator), torch.rand(9, 9, generator=generator) < 0.3)
        self.b = Holder(torch.zeros(9, 9), self.a.weight_mask.clone())
        self.b.weight = self.a.weight


def test_a_shared_weight_is_stored_once_and_comes_back_under_each_name(tmp_path: Path) -> None:
    model, other = Tied(), Tied(1)
    save(model, tmp_path / "a")
    assert set(load_file(tmp_path / "a")) == {"a.weight.kept", "a.weight.mask"}
    state, masks, _ = read_state(tmp_path / "a")
    assert list(state) == ["a.weight", "b.weight"]
    assert list(masks) == ["a.weight"]
    load(tmp_path / "a", other)
    assert other.a.weight is other.b.weight
    assert torch.equal(other.a.weight, model.a.weight * model.a.weight_mask)
    assert torch.equal(other.b.weight_mask, model.a.weight_mask)
    assert [row.encoding for row in inspect_file(tmp_path / "a").rows] == ["bitmask", "alias of a.weight"]


def test_a_shared_weight_loads_into_a_model_that_does_not_share_it(tmp_path: Path) -> None:
    save(Tied(), tmp_path / "a")
    other = Tied(1)
    other.b.weight = nn.Parameter(torch.zeros(9, 9), requires_grad=False)
    load(tmp_path / "a", other)
    assert torch.equal(other.a.weight, other.b.weight)
    assert torch.equal(other.a.weight_mask, other.b.weight_mask)


def test_a_shared_weight_with_a_dense_use_keeps_its_values_under_the_mask(tmp_path: Path) -> None:
    model = Tied()
    dense = nn.Linear(9, 9, bias=False)
    dense.weight = model.a.weight
    model.b = dense  # type: ignore[assignment]
    save(model, tmp_path / "a")
    state, _, _ = read_state(tmp_path / "a")
    assert torch.equal(state["b.weight"], model.a.weight)
