"""sparsify.compile of files: without tuning where the file holds a strategy for here, and never by a wrong one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify import SparsifyError
from sparsify.formats.file.metadata import Metadata
from sparsify.formats.model.write import write_sparse
from sparsify.formats.request import ExportRequest
from sparsify.runtime.compile import compile
from sparsify.runtime.tuning import file_record as stored
from sparsify.runtime.tuning import search as tuning
from sparsify.runtime.tuning.search import Strategy
from tests.random_masks import randomly_masked

SHAPES = ((3, 2, 8, 8),)
STRATEGY = Strategy("chunks", 2, frozenset({"convolution_1"}))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))


def timed(work: object) -> float:
    raise AssertionError("something was timed")


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_seconds", timed)


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return y


def written(path: Path, model: nn.Module, engine: Mapping[str, Any], **about: Any) -> Path:
    """Write a model with this entry, whatever it says."""
    write_sparse(ExportRequest(model, path, Metadata(format="sparse", engine=engine, **about)))
    return path


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return randomly_masked(Net(), 0.4).eval()


@pytest.fixture
def tuned(net: nn.Module, tmp_path: Path) -> Path:
    """Return the file of the model, tuned for two threads."""
    return written(tmp_path / "m", net, stored.entry(SHAPES, 2, STRATEGY))


@pytest.mark.usefixtures("untimed")
def test_the_strategy_of_the_file_is_taken_and_nothing_is_timed(
    net: nn.Module, tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = compile(tuned, model=Net(), threads=2)
    assert engine.strategies == {
        SHAPES: Strategy(STRATEGY.kind, STRATEGY.images, STRATEGY.dense, why="tuned when the file was written")
    }
    x = torch.randn(SHAPES[0])
    with torch.no_grad():
        assert close(engine(x), net(x))
    shown = str(engine).splitlines()
    assert shown[0] == "engine of Net, 2 threads" and not caplog.records
    assert shown[1] == "input 3x2x8x8: each thread on 2 images at a time, 1 layer left to PyTorch: " + (
        "tuned when the file was written"
    )
    assert any(line.split()[0] == "second" and "faster so" in line for line in shown)


def test_what_save_writes_is_taken(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(SHAPES[0])
    sparsify.save(net, tmp_path / "m", format="engine", example_input=x, threads=1)
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(tuning, "_seconds", timed)
    engine = sparsify.compile(tmp_path / "m", model=Net(), threads=1)
    assert engine.strategies[SHAPES].why == "tuned when the file was written"
    with torch.no_grad():
        assert close(engine(x), net(x))
    with pytest.raises(AssertionError, match="something was timed"):
        engine(x[:2])


@pytest.mark.usefixtures("untimed")
def test_a_model_that_is_faster_with_torch_stays_so(net: nn.Module, tmp_path: Path) -> None:
    path = written(tmp_path / "m", net, stored.entry(SHAPES, 1, Strategy("torch")))
    x = torch.randn(SHAPES[0])
    with torch.no_grad():
        assert torch.equal(compile(path, model=Net(), threads=1)(x), net(x))


def test_other_shapes_are_tuned_when_they_come(net: nn.Module, tuned: Path) -> None:
    engine = compile(tuned, torch.randn(1, 2, 8, 8), model=Net(), threads=2)
    assert (
        engine.strategies.keys() == {((1, 2, 8, 8),)} and engine.strategies[((1, 2, 8, 8),)].seconds and not engine.note
    )
    engine(torch.randn(SHAPES[0]))
    assert not engine.strategies[SHAPES].seconds


ELSEWHERE = {
    "threads": ({}, 1, "threads 2 (here 1)"),
    "cpu": ({"cpu": "z80"}, 2, "cpu z80 (here "),
    "version": ({"torch": "1.0"}, 2, "torch 1.0 (here "),
    "unknown": ({"numba": None}, 2, "numba None (here "),
    "lines": ({"cpu": "z\n" + 99 * "8"}, 2, f"cpu z {38 * '8'} (here "),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_strategy_from_elsewhere_is_not_taken_and_that_is_said(
    name: str, net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, threads, told = ELSEWHERE[name]
    entry = stored.entry(SHAPES, 2, STRATEGY)
    entry["machine"] |= made
    # What another version calls a strategy is none of ours to understand.
    path = written(tmp_path / "m", net, {**entry, "way": {"kind": "of another version"}})
    engine = compile(path, model=Net(), threads=threads)
    assert engine.strategies[SHAPES].seconds
    line = f"{path}: its strategy is not used: it was tuned for {told}"
    assert str(engine).splitlines()[1].startswith(line)
    [record] = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage().startswith(f"compile: {line}")
    x = torch.randn(SHAPES[0])
    with torch.no_grad():
        assert close(engine(x), net(x))


def test_without_tuning_a_strategy_from_elsewhere_is_not_taken_either(tuned: Path, untimed: None) -> None:
    engine = compile(tuned, model=Net(), threads=1, tune=False)
    assert engine.strategies[SHAPES] == Strategy("chunks", 3) and "its strategy is not used" in str(engine)


class Mixing(nn.Module):
    """Its images are not independent of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y - y.mean(0, keepdim=True)


def test_a_strategy_that_is_wrong_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = randomly_masked(Mixing(), 0.4).eval()
    path = written(tmp_path / "m", model, stored.entry(SHAPES, 2, Strategy("chunks", 1)))
    engine = compile(path, model=Mixing(), threads=2)
    assert engine.strategies[SHAPES].seconds and engine.strategies[SHAPES].kind in ("torch", "split")
    assert engine.note == f"{path}: its strategy is not used: it does not give the model's outputs"
    assert len(caplog.records) == 1
    x = torch.randn(SHAPES[0])
    with torch.no_grad():
        assert close(engine(x), model(x))


BROKEN: dict[str, Mapping[str, Any]] = {
    "nothing of it": {"shapes": None},
    "no list": {"shapes": 3},
    "no shapes": {"shapes": []},
    "no sizes": {"shapes": [[1, "2"]]},
    "an empty input": {"shapes": [[0, 2, 8, 8]]},
    "a huge input": {"shapes": [[2**40]]},
    "no machine": {"machine": "this"},
    "threads": {"threads": "2"},
    "truth": {"threads": True},
    "no strategy": {"way": None},
    "kind": {"way": {"kind": "warp", "images": 1, "dense": []}},
    "images": {"way": {"kind": "chunks", "images": 0, "dense": []}},
    "dense": {"way": {"kind": "split", "images": 0, "dense": "conv"}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_is_one_line_and_the_file_loads(name: str, net: nn.Module, tmp_path: Path) -> None:
    path = written(tmp_path / "m", net, {**stored.entry(SHAPES, 2, STRATEGY), **BROKEN[name]})
    with pytest.raises(SparsifyError, match=r"its entry 'engine' does not hold [^\n]*--format engine\)$") as caught:
        compile(path, model=Net(), threads=2)
    assert str(caught.value).startswith(f"{path}: ")
    assert sparsify.get_masks(sparsify.load(path, Net()))


def test_an_entry_that_is_no_table_is_one_line(net: nn.Module, tmp_path: Path) -> None:
    path = written(tmp_path / "m", net, ["a"])  # type: ignore[arg-type]
    with pytest.raises(SparsifyError, match="'engine' in it is not a JSON object$"):
        compile(path, model=Net(), threads=2)


def test_a_file_without_a_strategy_is_compiled_for_one_image(tmp_path: Path) -> None:
    model = randomly_masked(sparsify.build_model("timm:test_resnet", num_classes=10), 0.4).eval()
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}}
    sparsify.save(model, tmp_path / "m.safetensors", **about, extra={"input_shape": [3, 32, 32]})
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
    for source in (tmp_path, str(tmp_path / "m.safetensors")):  # a folder as a run has it, and a path
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes())
        engine = compile(source, threads=1, tune=False)
        assert engine.strategies.keys() == {((1, 3, 32, 32),)} and not engine.note
        assert close(engine(x), wanted)


def test_a_user_s_model_is_filled_in_place_and_stays_plain(net: nn.Module, tuned: Path) -> None:
    mine = Net()
    compile(tuned, model=mine, threads=2)
    assert type(mine.first) is nn.Conv2d and torch.equal(mine.fc.weight, sparsify.fold(net).fc.weight)


def test_mistakes_are_one_line(net: nn.Module, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="^compile: a model needs an example_input"):
        compile(net)
    with pytest.raises(SparsifyError, match="^compile: model= is for a file"):
        compile(net, torch.zeros(SHAPES[0]), model=Net())
    with pytest.raises(SparsifyError, match="the file does not name its model"):
        compile(tuned)
    with pytest.raises(SparsifyError, match="nothing-here"):
        compile(tmp_path / "nothing-here")
    for size in ([], ["a"], "huge", [2**50]):
        path = written(tmp_path / "plain", net, {}, extra={"input_shape": size})
        with pytest.raises(SparsifyError, match=r"^compile: .*does not say what its model takes \(input_shape\)"):
            compile(path, model=Net())


def test_an_example_is_of_the_model_s_type(net: nn.Module, tmp_path: Path) -> None:
    path = written(tmp_path / "m", net.double(), {}, extra={"input_shape": [2, 8, 8]})
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(compile(path, model=Net().double(), threads=1)(x), net(x))
