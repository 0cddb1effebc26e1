"""Calls with integers, truth values and what is no tensor: the float part runs on kernels."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from sparsify.calls import Inputs
from sparsify.errors import EngineWarning
from sparsify.relative_error import relative_error
from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine
from sparsify.runtime.kernels.opcodes import Opcode
from sparsify.runtime.lowering import rules
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.tuning.search import TORCH
from tests.random_masks import randomly_masked


class Steps(nn.Module):
    """A denoiser's shape: images and the number of a step for each, or for all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, flag: object = None, scale: float = 1.0) -> Tensor:
        x = self.first(x) + self.table(t)[..., None, None]
        x = x.relu() if flag else x
        y: Tensor = self.second(x) * scale
        return y


class Masked(nn.Module):
    """A truth value for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.second(torch.where(mask[:, None, 1:-1, 1:-1], self.first(x).relu(), 0.0))
        return y


class Tokens(nn.Module):
    """Token numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(self.table(ids)).relu())
        return y


def kernels_of(engine: Engine) -> set[Opcode]:
    return {
        step.opcode for plan in engine._plans.values() for step in plan.instructions if isinstance(step, Instruction)
    }


def check(engine: Engine, model: nn.Module, *args: object) -> None:
    with torch.no_grad():
        wanted = model(*args)
    assert relative_error([engine(*args)], [wanted]) <= 1e-5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("images", [1, 3])
def test_a_step_number_for_each_image_leaves_convolutions_to_kernels(
    images: int, dtype: torch.dtype, threads: int
) -> None:
    model = Steps().eval()
    x, t = torch.randn(images, 3, 6, 6), torch.arange(images, dtype=dtype)
    engine = compile(model, (x, t), threads=threads, tune=False)
    assert [strategy.kind != "torch" for strategy in engine.strategies.values()] == [True]
    assert kernels_of(engine) & {Opcode.CONVOLVE, Opcode.CONVOLVE_TILES, Opcode.CONVOLVE_GENERATED}
    for number in range(4):
        check(engine, model, torch.randn_like(x), (t + number).to(dtype))
    assert "int" in str(engine) and len(engine.strategies) == 1


def test_a_step_number_for_all_images_is_not_cut() -> None:
    model = Steps().eval()
    x = torch.randn(4, 3, 6, 6)
    engine = compile(model, (x, torch.tensor(3)), threads=2, tune=False)
    [strategy] = engine.strategies.values()
    assert strategy.kind == "chunks"
    for number in (0, 7):
        check(engine, model, x, torch.tensor(number))


def test_integers_and_their_types_are_told_apart() -> None:
    model, x = Steps().eval(), torch.randn(1, 3, 6, 6)
    engine = compile(model, (x, torch.tensor([1])), threads=1, tune=False)
    check(engine, model, x, torch.tensor([1], dtype=torch.int32))
    assert len(engine.strategies) == 2


@pytest.mark.parametrize("images", [1, 4])
def test_truth_values_leave_convolutions_to_kernels(images: int) -> None:
    model = Masked().eval()
    x, mask = torch.randn(images, 3, 6, 6), torch.rand(images, 6, 6) < 0.5
    engine = compile(model, (x, mask), threads=2, tune=False)
    assert kernels_of(engine) & {Opcode.CONVOLVE, Opcode.CONVOLVE_TILES, Opcode.CONVOLVE_GENERATED}
    for given in (mask, ~mask, torch.zeros_like(mask)):
        check(engine, model, x, given)


def test_token_numbers_alone_leave_linear_layers_to_kernels() -> None:
    model, ids = Tokens().eval(), torch.randint(20, (2, 5))
    engine = compile(model, ids, threads=1, tune=False)
    assert next(iter(engine.strategies.values())).kind != "torch" and Opcode.CONVOLVE_TILES in kernels_of(engine)
    check(engine, model, ids.flip(0))


def test_an_index_that_is_wrong_is_torch_s_error_and_names_the_operation() -> None:
    model, ids = Tokens().eval(), torch.randint(20, (2, 5))
    engine = compile(model, ids, threads=2, tune=False)
    with pytest.raises(IndexError) as caught:
        engine(ids + 20)
    assert caught.value.__notes__ == ["in embedding"]
    check(engine, model, ids)


@pytest.mark.parametrize("flag", [True, False, None, "yes", 3])
def test_what_is_no_tensor_makes_a_program_of_its_own(flag: object) -> None:
    model, x, t = Steps().eval(), torch.randn(1, 3, 6, 6), torch.tensor([1])
    engine = compile(model, (x, t, True), threads=1, tune=False)
    for given in (flag, True, False):
        check(engine, model, x, t, given)
    assert all(strategy.kind != "torch" for strategy in engine.strategies.values())


def test_many_values_are_torch_s_and_that_is_told() -> None:
    model, x, t = Steps().eval(), torch.randn(1, 3, 6, 6), torch.tensor([1])
    engine = compile(model, (x, t, True, 0.5), threads=1, tune=False)
    for number in range(12):
        check(engine, model, x, t, True, float(number))
    assert len(engine.strategies) == 8 and "more than 8 values" in str(engine)


class Named(nn.Module):
    """Takes a table of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, held: dict[str, Tensor]) -> Tensor:
        y: Tensor = self.conv(held["a"] - 2 * held["b"])
        return y


def test_the_order_of_a_table_matters_not() -> None:
    model, a, b = Named().eval(), torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    engine = compile(model, Inputs({"a": a, "b": b}), threads=1, tune=False)
    check(engine, model, {"a": b, "b": a})
    check(engine, model, {"b": b, "a": a})
    check(engine, model, {"a": a, "b": b})


def test_defaults_set_later_change_nothing() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 6, 6)
    engine = compile(model, x, threads=2, tune=False)
    with torch.no_grad():
        wanted = model(x)
    try:
        torch.set_default_dtype(torch.float64)
        found = engine(x)
        assert "default dtype float64" in str(engine)
    finally:
        torch.set_default_dtype(torch.float32)
    assert relative_error([found], [wanted]) <= 1e-5
    with torch.device("meta"):
        found = engine(x)
    assert relative_error([found], [wanted]) <= 1e-5


@pytest.mark.parametrize("first", [True, False])
def test_autocast_changes_nothing(first: bool) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=first):
        engine = compile(model, x, threads=1, tune=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = engine(x)
        assert torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        wanted = model(x)
    for found in (inside, engine(x)):
        assert relative_error([found], [wanted]) <= 1e-5
    assert next(iter(engine.strategies.values())).kind != "torch"


def test_what_a_caller_does_to_constant_outputs_is_not_seen_by_the_next() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), torch.arange(3)

    engine = compile(Constant().eval(), torch.randn(2, 3, 6, 6), threads=1, tune=False)
    for _ in range(2):
        _, constant = engine(torch.randn(2, 3, 6, 6))
        assert constant.tolist() == [0, 1, 2]
        constant.zero_()


def failing(error: Exception) -> object:
    def rule(lowering: object, node: object) -> bool:
        raise error

    return rule


@pytest.mark.parametrize("tune", [True, False])
def test_a_kernel_that_fails_costs_its_own_operation_and_is_said(
    tune: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    monkeypatch.setitem(rules.RULES, torch.ops.aten.max_pool2d_with_indices.default, failing(ValueError("no pool")))
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)).eval(), torch.randn(2, 3, 8, 8)
    with pytest.warns(EngineWarning, match="max_pool2d_with_indices is left to PyTorch .*ValueError: no pool") as said:
        engine = compile(model, x, threads=1, tune=tune)
    assert len(said) == 1 and "ValueError: no pool" in str(engine)
    assert {Opcode.CONVOLVE_TILES} <= kernels_of(engine)
    assert not list(tmp_path.iterdir())  # type: ignore[attr-defined]
    check(engine, model, x)


def test_kernels_that_fail_altogether_are_said_and_nothing_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from sparsify.runtime.program import plan

    def broken() -> object:
        raise OSError("no compiler")

    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(1, 3, 8, 8)
    with monkeypatch.context() as during, pytest.warns(EngineWarning, match="convolution: OSError: no compiler"):
        during.setattr(plan, "ready", broken)
        during.setattr("sparsify.runtime.threads.thread_pool.ready", broken)
        engine = compile(model, x, threads=1)
    check(engine, model, x)
    assert "no compiler" in str(engine) and not list(tmp_path.iterdir())  # type: ignore[attr-defined]
    assert compile(model, x, threads=1).strategies[(tuple(x.shape),)].seconds


def test_a_wrong_premise_is_no_failure_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, torch.ops.aten.convolution.default, failing(AssertionError("never")))
    with pytest.raises(AssertionError, match="never"):
        compile(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), threads=1, tune=False)


def test_a_strategy_that_torch_won_in_the_absence_of_failures_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from sparsify.runtime.tuning import cache

    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    cache.keep("a", TORCH)
    found = cache.recall("a")
    assert found is not None and found.kind == "torch"


def test_a_masked_denoiser_runs_its_convolutions_sparse() -> None:
    torch.manual_seed(0)
    model = randomly_masked(Steps().eval(), 0.1)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([3])
    engine = compile(model, (x, t), threads=1, tune=False)
    assert "sparse kernel" in str(engine) and "embedding" in str(engine)
    check(engine, model, x, t)


def test_a_strategy_that_fails_is_said_though_another_one_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(engine: Engine, strategy: object, inputs: object) -> object:
        raise KeyError("no chunk")

    monkeypatch.setattr(Engine, "_chunks", broken)
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8)
    with pytest.warns(
        EngineWarning,
        match="is not run by .* or each thread on 1 image at a time: KeyError",
    ) as said:
        engine = compile(model, x, threads=1, tune=False)
    assert len(said) == 1 and [strategy.kind for strategy in engine.strategies.values()] == ["split"]
    assert "each thread on 1 image at a time: KeyError: 'no chunk'" in str(engine)
    check(engine, model, x)


def test_what_fails_when_a_program_is_assembled_costs_its_own_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsify.runtime.program import assemble

    monkeypatch.setitem(assemble._OWN, Opcode.MAX_POOL, failing(ValueError("no window")))
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).eval(), torch.randn(1, 3, 8, 8)
    with pytest.warns(EngineWarning, match="max_pool2d_with_indices is left to PyTorch .*ValueError: no window"):
        engine = compile(model, x, threads=1, tune=False)
    assert {Opcode.CONVOLVE_TILES} <= kernels_of(engine)
    check(engine, model, x)


def test_outputs_that_are_wrong_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sparsify.runtime.lowering import elementwise

    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    monkeypatch.setitem(elementwise.CLAMPS, torch.ops.aten.relu.default, lambda: (0.25, 0.5))
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    with pytest.warns(EngineWarning, match="is left to PyTorch: its outputs differ by .* of the largest") as said:
        engine = compile(model, x, threads=1)
    assert len(said) == 1 and not list(tmp_path.iterdir())
    check(engine, model, x)


def test_a_forward_that_cannot_be_traced_is_said() -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if get_proxy_mode() is not None:
                raise RuntimeError("not to be recorded")
            return x + 1

    model, x = Untraceable().eval(), torch.randn(2, 3)
    with pytest.warns(EngineWarning, match="input 2x3 is left to PyTorch: RuntimeError: not to be recorded"):
        engine = compile(model, x, threads=1)
    assert torch.equal(engine(x), x + 1) and "PyTorch: RuntimeError: not to be recorded" in str(engine)


def test_an_invariant_that_breaks_while_a_program_runs_goes_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(workers: object, arrays: object) -> None:
        raise AssertionError("never")

    monkeypatch.setattr("sparsify.runtime.threads.thread_pool.Workers.split", broken)
    with pytest.raises(AssertionError, match="never"):
        compile(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), threads=1, tune=False)
