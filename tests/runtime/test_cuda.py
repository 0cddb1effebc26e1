"""Models on CUDA: which weights run how, and what is said of it. Only the last tests need a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.runtime import compile as compiling
from sparsify.runtime.cuda import for_cuda, on_cuda
from tests.runtime.test_semi_structured import two_of_four


@pytest.fixture
def model() -> nn.Module:
    """Return layers of which the first has a 2:4 mask and the second one without a pattern."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).half()
    sparsify.convert(model)
    masks = {"0.weight": two_of_four(torch.Size([64, 64])), "2.weight": torch.rand(32, 64) < 0.5}
    sparsify.set_masks(model, masks)
    return model


def pretend(monkeypatch: pytest.MonkeyPatch, kernels: Callable[[Tensor], Tensor]) -> None:
    """Let every model be one on CUDA, and `kernels` make the semi-structured tensors."""
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", kernels)
    monkeypatch.setattr(compiling, "on_cuda", lambda model: True)


UNSTRUCTURED = "  2.weight: not 2:4: more than two of four neighbours along the input features are left"


def test_two_of_four_weights_run_by_their_kernels_and_the_engine_says_which(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []

    def kernels(weight: Tensor) -> Tensor:
        given.append(weight)
        return weight * 1.001  # as another order of summation might

    pretend(monkeypatch, kernels)
    x = torch.randn(8, 64).half()
    engine = sparsify.compile(model, x)
    wanted = sparsify.fold(model)
    assert len(given) == 1 and torch.equal(given[0], wanted[0].weight)
    assert torch.equal(engine.model[0].weight, 1.001 * wanted[0].weight)
    assert torch.equal(engine.model[2].weight, wanted[2].weight)
    assert torch.equal(engine(x), engine.model(x)) and not engine.strategies
    assert str(engine).splitlines()[1:] == [
        "on CUDA, by PyTorch; semi-structured: 1 of 2 weights",
        UNSTRUCTURED,
        "  all other weights run dense",
        "input of float16 on cpu: PyTorch: kernels are for float32 on the CPU",
    ]


def wrong(weight: Tensor) -> Tensor:
    return weight * 2


def fitting_no_input(weight: Tensor) -> Tensor:
    return weight[:, :-4]


@pytest.mark.parametrize(
    ("kernels", "reason"), [(wrong, "the outputs differ by "), (fitting_no_input, "RuntimeError: ")]
)
def test_kernels_that_fail_leave_all_weights_dense(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, kernels: Callable[[Tensor], Tensor], reason: str
) -> None:
    pretend(monkeypatch, kernels)
    x = torch.randn(8, 64).half()
    engine = sparsify.compile(model, x)
    with torch.no_grad():
        assert torch.equal(engine(x), sparsify.fold(model)(x))
    assert f"none of them is used, all weights run dense: {reason}" in str(engine)


def test_what_torch_refuses_runs_dense_and_is_named(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "on_cuda", lambda model: True)
    engine = sparsify.compile(model.float(), torch.randn(8, 64))
    assert torch.equal(engine.model[0].weight, sparsify.fold(model)[0].weight)
    shown = str(engine)
    assert "semi-structured: 0 of 2 weights" in shown and "  all weights run dense" in shown
    assert "  0.weight: float32: torch takes float16, bfloat16 and int8" in shown


def test_models_are_left_as_they_were(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, wrong)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for_cuda(model, (torch.randn(8, 64).half(),))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_without_kernels_are_told() -> None:
    model = nn.Conv2d(1, 1, 1).double()
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    engine = sparsify.compile(model, x, threads=1)
    assert not on_cuda(model) and torch.equal(engine(x), model(x))
    told = "input of float64 on cpu: PyTorch: kernels are for float32 on the CPU"
    assert str(engine).splitlines() == ["engine of Conv2d, 1 thread", told]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("folded", [False, True])
def test_on_the_gpu_the_outputs_are_those_of_the_zeros(model: nn.Module, folded: bool) -> None:
    model.cuda()
    x = torch.randn(64, 64, device="cuda", dtype=torch.float16)
    engine = sparsify.compile(sparsify.fold(model) if folded else model, x)
    shown = str(engine)
    assert "semi-structured: 1 of 2 weights" in shown and UNSTRUCTURED in shown and "none of them" not in shown
    with torch.no_grad():
        found, wanted = engine(x).float(), sparsify.fold(model)(x).float()
    assert (found - wanted).abs().max() <= 5e-3 * wanted.abs().max()
