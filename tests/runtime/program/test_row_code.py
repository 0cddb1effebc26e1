"""Generated code against float64, on tensors for which every branch of it is taken."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.calls import Inputs
from sparsify.runtime.call_inputs import flattened
from sparsify.runtime.codegen import executable
from sparsify.runtime.codegen.executable import Executable, refusal
from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine
from sparsify.runtime.kernels.opcodes import Column, Opcode
from sparsify.runtime.kernels.planes import Planes
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.lowering.packed_rows import PackedRows
from sparsify.runtime.program.assemble import Segment
from sparsify.runtime.program.row_code import RowCode, row_code
from sparsify.runtime.tuning.search import Strategy

here = pytest.mark.skipif(refusal() is not None, reason=f"generated code does not run here: {refusal()}")


def opcodes_of(engine: Engine) -> list[Opcode]:
    plan = next(iter(engine._plans.values()))
    return [row[Column.OPCODE] for part in plan.program.parts if isinstance(part, Segment) for row in part.table]


def sparse(module: nn.Module, keep: float) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape)
        if parameter.dim() > 1:
            parameter.data *= (torch.rand(parameter.shape) < keep) / parameter[0].numel() ** 0.5
    return module.eval()


def check(model: nn.Module, x: Tensor, threads: int) -> Engine:
    """Hold the engine's outputs against float64's; some of its kernels are generated."""
    with torch.no_grad():
        engine = compile(model, x, threads=threads, tune=False)
        expected = model.double()(x.double())
        found = engine(x)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=float(1e-5 * expected.abs().max()))
    assert Opcode.CONVOLVE_GENERATED in opcodes_of(engine)
    return engine


class Residual(nn.Module):
    """A sum with its own input, or with one that is read again."""

    def __init__(self, channels: int, size: int, again: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, size, padding=size // 2)
        self.second = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = (self.second(x) + x).clamp(-1.0, 2.0)
        return y * x if self.again else y


@here
@settings(max_examples=15, deadline=None)
@given(
    images=st.sampled_from([1, 2, 16]),
    channels=st.sampled_from([20, 31, 32, 70]),
    size=st.sampled_from([1, 3]),
    height=st.integers(9, 14),
    width=st.integers(9, 14),
    keep=st.sampled_from([0.2, 0.4, 0.9]),
    again=st.booleans(),
    threads=st.integers(1, 3),
)
def test_sums_with_what_is_there_and_with_what_is_elsewhere(
    images: int, channels: int, size: int, height: int, width: int, keep: float, again: bool, threads: int
) -> None:
    check(sparse(Residual(channels, size, again), keep), torch.randn(images, channels, height, width), threads)


@here
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("images", "size"), [(1, 14), (16, 4), (16, 7)])
def test_input_channels_come_in_chunks(images: int, size: int, threads: int) -> None:
    model = sparse(nn.Sequential(nn.Conv2d(300, 40, 3, padding=1), nn.ReLU6(), nn.Conv2d(40, 64, 1)), 0.1)
    engine = check(model, torch.randn(images * threads, 300, size, size), threads)
    plan = next(iter(engine._plans.values()))
    table = next(part.table for part in plan.program.parts if isinstance(part, Segment))
    assert max(table[table[:, Column.OPCODE] == Opcode.CONVOLVE_GENERATED][:, Column.CHUNKS]) > 1


@here
def test_strides_and_channels_without_weights() -> None:
    convolution = nn.Conv2d(24, 48, 3, stride=2, padding=1)
    model = sparse(nn.Sequential(convolution, nn.Conv2d(48, 32, 3, padding=1)), 0.3)
    with torch.no_grad():
        convolution.weight[3:20] = 0
        convolution.weight[:, 5] = 0
    check(model, torch.randn(3, 24, 20, 22), 1)


@here
@settings(max_examples=20, deadline=None)
@given(
    images=st.sampled_from([16, 32]),
    groups=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.sampled_from([(2, 2), (2, 1), (1, 2), (3, 2)]),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(12, 21), st.integers(12, 21)),
    threads=st.integers(1, 3),
)
def test_a_stride_reads_every_second_pixel_of_sixteen_images_without_a_copy(
    images: int,
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    threads: int,
) -> None:
    strided = nn.Conv2d(8, 62, kernel, stride, padding, dilation, groups)
    model = sparse(nn.Sequential(strided, nn.ReLU(), nn.Conv2d(62, 31, 3, padding=1)), 0.4)
    x = torch.randn(images, 8, *size)
    engine = check(model, x, threads)
    engine.strategies = dict.fromkeys(engine.strategies, Strategy("chunks", 16))
    with torch.no_grad():
        torch.testing.assert_close(engine(x).double(), model.double()(x.double()), rtol=0, atol=1e-5)
    plan = engine._plans[flattened(Inputs(x[:16])).key, frozenset()]
    opcodes = [one.opcode for one in plan.instructions if isinstance(one, Instruction)]
    assert opcodes.count(Opcode.CONVOLVE_GENERATED) >= 1 and Opcode.DECIMATE not in opcodes


@here
def test_sums_of_strided_convolutions_and_other_numbers_of_images() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shortcut = nn.Conv2d(16, 40, 3, 2, 1), nn.Conv2d(16, 40, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.first(x) + self.shortcut(x))

    for images in (1, 8, 15, 16, 17, 48):
        check(sparse(Block(), 0.4), torch.randn(images, 16, 26, 24), 2)


@here
@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, None), (None, 0.5)])
def test_not_a_number_goes_through_clamps(bounds: tuple[float | None, float | None]) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(32, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x).clamp(*bounds)

    model, x = sparse(Clamped(), 0.3), torch.randn(1, 32, 12, 12)
    engine = check(model, x, 1)
    model.float()
    x[0, :, 3, 4] = torch.nan
    with torch.no_grad():
        assert torch.equal(engine(x).isnan(), model(x).isnan())


def blocks(seed: int = 0) -> tuple[RowCode, PackedRows]:
    """Return code for 40 rows of 300 channels of 3 x 3, more than a chunk takes with vectors of any width."""
    generator = np.random.default_rng(seed)
    source, out = Planes(300, 6, 6, 1, 16), Planes(40, 6, 6, 1, 16)
    kept = generator.random((40, 300 * 9)) < 0.2
    shifts = np.add.outer(np.arange(3) * source.row_stride, np.arange(3) * 16).reshape(-1)
    places = (np.arange(300)[:, None] * source.size + shifts).reshape(-1)
    row, column = np.nonzero(kept)
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    values = generator.standard_normal(len(row)).astype(np.float32)
    biases = generator.standard_normal(40).astype(np.float32)
    rows = PackedRows(indptr, places[column].astype(np.uint32), values, biases, 0, kept.size)
    return row_code(rows, source, out, (0.0, 6.0), inside=True, adds=False), rows


def test_every_weight_and_bias_is_among_the_values_once() -> None:
    code, rows = blocks()
    assert code.groups == 2 and code.chunks > 1 and len(code.starts) == code.groups * code.chunks
    bounds = np.array([0.0, 6.0] * code.groups, dtype=np.float32)
    expected = np.concatenate([rows.values, rows.biases, bounds])
    np.testing.assert_array_equal(np.sort(code.values), np.sort(expected))


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_a_disassembler_reads_the_instructions(tmp_path: Path) -> None:
    code, rows = blocks()
    (tmp_path / "code").write_bytes(code.code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", str(tmp_path / "code")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "(bad)" not in text
    assert text.count("vfmadd231ps") == len(rows.values) and text.count("ret") == len(code.starts)
    assert text.count("vmaxps") == text.count("vminps") == len(rows.biases)
    assert all(f"zmm{k}," in text for k in range(20))


@here
def test_memory_of_code_runs() -> None:
    code = Executable(bytes.fromhex("488d0437c3"))  # lea rax, [rdi + rsi]; ret
    add = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(code.address)
    assert add(40, 2) == 42


@here
def test_a_system_that_refuses_is_named_and_loops_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Executable, code: bytes) -> None:
        raise PermissionError(13, "no executable memory")

    monkeypatch.setattr(Executable, "__init__", refused)
    executable.refusal.cache_clear()
    try:
        model, x = sparse(nn.Conv2d(40, 40, 3, padding=1), 0.2), torch.randn(1, 40, 12, 12)
        with torch.no_grad():
            engine = compile(model, x, tune=False)
            torch.testing.assert_close(engine(x), model(x), rtol=0, atol=1e-3)
        assert Opcode.CONVOLVE_GENERATED not in opcodes_of(engine)
        assert "no executable memory" in str(engine)
    finally:
        executable.refusal.cache_clear()


def test_a_plane_beyond_a_displacement_is_refused() -> None:
    rows = PackedRows(
        np.array([0, 1]), np.array([2**30], dtype=np.uint32), np.ones(1, np.float32), np.zeros(1, np.float32), 0, 1
    )
    with pytest.raises(ValueError, match="too large"):
        row_code(rows, Planes(1, 8, 8, 0, 1), Planes(1, 8, 8, 0, 1), (0.0, 1.0), inside=False, adds=False)
