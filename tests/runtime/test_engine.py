"""The engine as its users meet it: any model, any shape, several threads, and what it says of itself."""

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify import SparsifyError
from sparsify.errors import CacheWarning, EngineWarning
from sparsify.relative_error import relative_error
from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine
from sparsify.runtime.kernels.opcodes import Opcode
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.tuning.search import TORCH, Strategy


def pruned(spec: str, sparsity: float = 0.9) -> nn.Module:
    torch.manual_seed(0)
    model = sparsify.build_model(spec).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.data.normal_(0, 0.02)  # a head that begins with zeros says nothing
    sparsify.convert(model, ignore=["first", "last"])
    settings = {"criterion": "magnitude", "sparsity": sparsity, "scope": "filter"}
    sparsify.Pruner(model, settings, total_steps=0).start()
    return model


def on_kernels(engine: Engine) -> None:
    """Nothing was left to PyTorch: neither a shape as a whole nor an operation."""
    assert engine.strategies and all(
        strategy.kind != "torch" and not strategy.dense for strategy in engine.strategies.values()
    ), str(engine)
    for plan in engine._plans.values():
        assert all(isinstance(step, Instruction) for step in plan.instructions), str(engine)


def close(found: Tensor, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that is tuned here is kept, or known from before."""
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Residual(nn.Module):
    """What a residual network has, and little of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y: Tensor = self.fc((self.down(x) + self.short(x)).relu().mean((2, 3)))
        return y


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = Residual().eval()
    sparsify.convert(model)
    sparsify.Pruner(model, {"criterion": "random", "sparsity": 0.6, "scope": "layer"}, total_steps=0).start()
    return model


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_every_strategy_gives_the_model_s_outputs(resnet: nn.Module, images: int, threads: int) -> None:
    x = torch.randn(images, 3, 32, 32)
    engine = compile(resnet, x, threads=threads, tune=False)
    on_kernels(engine)
    mixed = Strategy("split", dense=frozenset({"convolution_1"}))
    for strategy in (TORCH, Strategy("split"), Strategy("chunks", 1), Strategy("chunks", 2), mixed):
        engine.strategies = {(tuple(x.shape),): strategy}
        close(engine(x), resnet, x)


def test_other_shapes_are_compiled_when_they_come(resnet: nn.Module) -> None:
    engine = compile(resnet, torch.randn(1, 3, 32, 32), threads=2, tune=False)
    for shape in ((4, 3, 32, 32), (1, 3, 40, 24), (7, 3, 32, 32)):
        x = torch.randn(shape)
        close(engine(x), resnet, x)
        close(engine(x), resnet, x)
    assert len(engine.strategies) == 4
    on_kernels(engine)


def test_the_engine_keeps_its_weights(resnet: nn.Module) -> None:
    model, x = copy.deepcopy(resnet), torch.randn(2, 3, 32, 32)
    engine = compile(model, x, threads=1, tune=False)
    on_kernels(engine)
    before = engine(x)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(engine(x), before)
    assert model.training == resnet.training


def test_outputs_are_the_caller_s_own(resnet: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    engine = compile(resnet, x, threads=1, tune=False)
    on_kernels(engine)
    first = engine(x)
    kept = first.clone()
    engine(torch.randn(2, 3, 32, 32))
    assert torch.equal(first, kept)


def test_several_threads_may_call(resnet: nn.Module) -> None:
    inputs = [torch.randn(2, 3, 32, 32) for _ in range(6)]
    engine = compile(resnet, inputs[0], threads=2, tune=False)
    on_kernels(engine)
    expected = [engine(x) for x in inputs]
    close(expected[0], resnet, inputs[0])
    found: list[Tensor | None] = [None] * len(inputs)

    def call(index: int) -> None:
        found[index] = engine(inputs[index])

    callers = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for one, other in zip(found, expected, strict=True):
        assert one is not None and torch.equal(one, other)


class Branching(nn.Module):
    """Its control flow depends on values: no record of one call holds for another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y if float(y.detach().sum()) > 0 else y.neg()


def test_a_forward_that_depends_on_values_is_torch_s() -> None:
    model = Branching()
    x = torch.randn(2, 1, 4, 4)
    engine = compile(model, x)
    for sign in (1, -1):
        assert torch.equal(engine(sign * x), model(sign * x))
    assert "PyTorch" in str(engine)


class Mixing(nn.Module):
    """Its images are not independent of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y - y.mean(0, keepdim=True)


def test_images_that_depend_on_each_other_are_not_computed_apart() -> None:
    model, x = Mixing(), torch.randn(4, 1, 6, 6)
    engine = compile(model, x, threads=2, tune=False)
    assert next(iter(engine.strategies.values())).kind == "split"
    assert relative_error([engine(x)], [model(x).detach()]) < 1e-5


class Several(nn.Module):
    """Two inputs, and outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        z = self.conv(x + y)
        return {"z": z, "both": (z.relu(), y), "constant": torch.arange(3), "number": 7}


def test_inputs_and_outputs_may_be_of_any_structure() -> None:
    model = Several()
    x, y = torch.randn(2, 1, 5, 5), torch.randn(2, 1, 5, 5)
    engine = compile(model, (x, y), threads=2, tune=False)
    assert next(iter(engine.strategies.values())).kind != "torch"
    assert {Opcode.CONVOLVE, Opcode.CONVOLVE_GENERATED} & {
        step.opcode for step in next(iter(engine._plans.values())).instructions if isinstance(step, Instruction)
    }
    found, expected = engine(x, y), model(x, y)
    assert found.keys() == expected.keys()
    assert found["number"] == 7
    assert torch.equal(found["constant"], torch.arange(3))
    torch.testing.assert_close(found["both"], expected["both"])


def test_tuning_keeps_the_fastest_strategy_and_says_what_it_timed(resnet: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    engine = compile(resnet, x, threads=1)
    strategy = next(iter(engine.strategies.values()))
    assert {"PyTorch", "all threads on all images", "each thread on 1 image at a time"} <= strategy.seconds.keys()
    assert strategy.seconds[str(strategy)] == min(strategy.seconds.values())
    assert "down" in str(engine)
    close(engine(x), resnet, x)


def test_what_was_tuned_is_known_to_the_next_engine(resnet: nn.Module, cache: Path) -> None:
    x = torch.randn(2, 3, 32, 32)
    first = next(iter(compile(resnet, x, threads=1).strategies.values()))
    again = compile(resnet, x, threads=1)
    strategy = next(iter(again.strategies.values()))
    assert (strategy, strategy.why, strategy.seconds) == (replace(first, why="tuned before"), "tuned before", {})
    close(again(x), resnet, x)
    assert next(iter(compile(resnet, x[:1], threads=1).strategies.values())).seconds


DAMAGES = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "garbage": lambda text: "\x00\x7f" * 99,
    "no table": lambda text: "[1, 2]",
    "deep": lambda text: "[" * 100_000,
    "no strategy": lambda text: text.replace("kind", "sort"),
    "another kind": lambda text: text.replace("split", "warp").replace("chunks", "warp").replace("torch", "warp"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_said_once_and_mended(name: str, resnet: nn.Module, cache: Path) -> None:
    x, record = torch.randn(1, 3, 16, 16), cache / "tuning.json"
    compile(resnet, x, threads=1)
    record.write_text(DAMAGES[name](record.read_text()))
    with pytest.warns(CacheWarning, match="what tuning found is damaged") as said:
        engine = compile(resnet, x, threads=1)
    assert len(said) == 1 and str(record) in str(said[0].message)
    close(engine(x), resnet, x)
    assert next(iter(engine.strategies.values())).seconds
    assert not next(iter(compile(resnet, x, threads=1).strategies.values())).seconds


def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(resnet: nn.Module, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    x = torch.randn(1, 3, 32, 32)
    with pytest.warns(CacheWarning, match="what tuning found cannot be kept") as said:
        engines = [compile(resnet, x, threads=1) for _ in range(2)]
    assert len(said) == 1
    for engine in engines:
        close(engine(x), resnet, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torch_s(dtype: torch.dtype) -> None:
    model = nn.Conv2d(1, 1, 1).to(dtype)
    x = torch.randn(1, 1, 2, 2, dtype=dtype)
    assert torch.equal(compile(model, x)(x), model(x))


def test_an_empty_batch_is_torch_s(resnet: nn.Module) -> None:
    engine = compile(resnet, torch.randn(1, 3, 32, 32), threads=1, tune=False)
    assert engine(torch.randn(0, 3, 32, 32)).shape == (0, 10)


def test_gaps_in_an_input_do_not_matter(resnet: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)[:, :, ::2, ::2]
    engine = compile(resnet, x, threads=1, tune=False)
    on_kernels(engine)
    close(engine(x), resnet, x)
    close(engine(x.contiguous(memory_format=torch.channels_last)), resnet, x)


def test_errors_are_one_line(resnet: nn.Module) -> None:
    with pytest.raises(SparsifyError, match=r"threads: 0 is given; it takes 1 to \d+"):
        compile(resnet, torch.randn(1, 3, 32, 32), threads=0)
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(SparsifyError, match="no values yet"):
        compile(model, torch.randn(1, 2))


def test_an_error_of_the_model_is_the_caller_s(resnet: nn.Module) -> None:
    engine = compile(resnet, torch.randn(1, 3, 32, 32), threads=2, tune=False)
    with pytest.raises(RuntimeError, match="channels"):
        engine(torch.randn(1, 4, 32, 32))
    on_kernels(engine)
    x = torch.randn(1, 3, 32, 32)
    close(engine(x), resnet, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "timm:resnet18",
        "timm:mobilenetv3_small_050",
        "timm:vit_tiny_patch16_224",
        "timm:convnext_atto",
        "timm:regnetx_002",
        "timm:efficientnet_b0",
        "timm:swin_tiny_patch4_window7_224",
        "timm:mixer_s32_224",
        "timm:nf_regnet_b0",
        "torchvision:densenet121",
        "torchvision:googlenet",
        "torchvision:shufflenet_v2_x0_5",
        "torchvision:squeezenet1_1",
        "torchvision:vit_b_32",
    ],
)
def test_models_of_the_zoos(spec: str) -> None:
    model = pruned(spec)
    x = torch.randn(2, 3, 224, 224)
    engine = compile(model, x, threads=2, tune=False)
    assert next(iter(engine.strategies.values())).kind != "torch"
    close(engine(x), model, x)


def test_of_one_image_one_thread_alone_is_timed_too(resnet: nn.Module) -> None:
    x = torch.randn(1, 3, 32, 32)
    engine = compile(resnet, x, threads=2)
    strategy = next(iter(engine.strategies.values()))
    assert {"all threads on all images", "each thread on 1 image at a time"} <= strategy.seconds.keys()
    close(engine(x), resnet, x)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM, nn.GRUCell, nn.LSTMCell, nn.RNNCell])
def test_first_states_may_be_parameters(kind: Any) -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.cell, self.leave = nn.Linear(5, 6), kind(6, 4), nn.Linear(4, 3)
            self.state = nn.Parameter(torch.randn(1, 1, 4))
            self.memory = nn.Parameter(torch.randn(1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            whole = isinstance(self.cell, nn.RNNBase)
            both = [
                one.expand(1, x.shape[1], 4) if whole else one[0].expand(len(x), 4) for one in (self.state, self.memory)
            ]
            out = self.cell(x, tuple(both) if isinstance(self.cell, nn.LSTM | nn.LSTMCell) else both[0])
            return self.leave(out if isinstance(out, Tensor) else out[0])

    torch.manual_seed(0)
    model = Remembering().eval()
    x = torch.randn(2, 3, 5) if issubclass(kind, nn.RNNBase) else torch.randn(2, 5)
    with torch.no_grad():
        engine = compile(model, x, threads=1, tune=False)
        for given in (x, 2 * x):
            torch.testing.assert_close(engine(given), model(given), rtol=0, atol=1e-5)
    assert next(iter(engine.strategies.values())).kind != "torch"


def test_a_forward_may_take_gradients_of_its_own_parameters() -> None:
    class Sensitive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                gradient = torch.autograd.grad(self.layer(x).square().sum(), self.layer.weight)[0]
            return self.layer(x) + gradient.sum(1)

    model, x = Sensitive().eval(), torch.randn(2, 4)
    with pytest.warns(EngineWarning, match="left to PyTorch: .* does not require grad"):  # a trace has no gradients
        engine = compile(model, x, threads=1, tune=False)
    torch.testing.assert_close(engine(x), model(x).detach(), rtol=0, atol=1e-5)
    assert not engine(x).requires_grad
