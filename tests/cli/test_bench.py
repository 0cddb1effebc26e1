"""`sparsify bench`, by hand, and the pieces of which its tables are made."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import sparsify as library
from cli import bench
from cli.view import bench_plot, bench_runtimes, bench_steps
from sparsify.errors import RunError
from sparsify.report.bench_results import read_bench_results
from sparsify.runtime.tuning.search import Strategy
from tests.cli.conftest import Outcome

Run = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
QUICK = ("--rounds", 2, "--threads", 1, "--skip", "torch.compile", "--skip", "onnxruntime")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(out: str) -> dict[str, list[str]]:
    """Return the cells of the table of runtimes by name."""
    lines = [line for line in out.splitlines() if line.rstrip().endswith(" s")]
    return {line[:21].strip(): line[21:].split() for line in lines}


def test_a_file_is_timed_beside_torch(sparsify: Run, pruned: Path) -> None:
    code, out, err = sparsify("bench", pruned, "--batch", 3, *QUICK)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{pruned}: timm:test_resnet"
    assert out.splitlines()[1] == "80.0 % of 371,568 weights are zero; 3 images of 3x32x32, 1 thread"
    found = rows(out)
    torch_alone = ["sparsify engine", "torch, contiguous", "torch, channels last"]
    assert list(found) == [*torch_alone, "shrunk, contiguous", "shrunk, channels last"]
    # ms, quartiles from - to, images/s, x torch, seconds until ready
    assert {cells[5] for name, cells in found.items() if name.startswith("torch")} >= {"1.00"}
    for cells in found.values():
        rate = float(cells[4].replace(",", ""))
        assert rate == pytest.approx(3e3 / float(cells[0].replace(",", "")), rel=0.05)
    assert "torch.compile: left out" in out and "onnxruntime: left out" in out
    # On a busy machine a line tells that quartiles are far apart.
    assert all(len(line) <= 80 for line in out.splitlines()[1:] if "something else ran" not in line)


def test_a_fresh_model_says_how_it_was_pruned(sparsify: Run) -> None:
    args = ("--model", "timm:test_resnet", "--sparsity", 0.5, "--image-size", 48)
    code, out, err = sparsify("bench", *args, *QUICK)
    assert (code, err) == (0, "")
    assert "fresh weights, as the model initialises them; 50.0 % of each layer's removed by magnitude" in out
    assert "1 image of 3x48x48" in out


def test_the_plan_tells_how_each_layer_runs(
    sparsify: Run, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    # What was found before for these weights is not taken for what is fastest now.
    library.compile(library.load(pruned, fold=True), torch.zeros(1, 3, 32, 32), threads=1)
    kept = (tmp_path / "cache" / "tuning.json").read_bytes()
    chart = tmp_path / "a.png"
    code, out, err = sparsify("bench", pruned, *QUICK, "--plan", "--plot", chart)
    assert (code, err) == (0, "") and chart.read_bytes().startswith(b"\x89PNG")
    start, end = (out.index(text) for text in ("each step by itself, 1 image, one thread:", f"{chart}: milliseconds"))
    assert " ms  PyTorch\n" in out and (tmp_path / "cache" / "tuning.json").read_bytes() == kept
    table = out[start:end]
    assert all(len(line) <= 80 for line in table.splitlines())
    for name in ("conv1.3", "layer1.0.conv2", "layer4.0.downsample.1", "fc", "all steps"):
        assert f"\n{name} " in table
    share = float((library.load(pruned, fold=True).get_parameter("layer1.0.conv1.weight") != 0).double().mean())
    assert f"{100 * share:.1f} %" in next(line for line in table.splitlines() if line.startswith("layer1.0.conv1"))


@pytest.mark.slow
def test_onnx_runtime_runs_what_save_writes(sparsify: Run, pruned: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    code, out, err = sparsify("bench", pruned, "--rounds", 2, "--threads", 1, "--skip", "torch.compile")
    assert (code, err) == (0, "") and "onnxruntime" in rows(out)


@pytest.mark.slow
def test_torch_compile_is_timed_or_said_not_to_work(sparsify: Run, pruned: Path) -> None:
    code, out, _ = sparsify("bench", pruned, "--rounds", 2, "--threads", 1, "--skip", "onnxruntime")
    assert code == 0
    assert ("torch.compile" in rows(out)) != ("torch.compile: does not run here: " in out)


def test_what_does_not_run_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module, x: Tensor, threads: int) -> Callable[[], object]:
        raise OSError("\nno compiler\nand much more of it")

    monkeypatch.setattr(bench_runtimes, "_OTHERS", {"torch.compile": fails, "onnxruntime": fails})
    _, found, notes = bench_runtimes.ready(nn.Linear(2, 2).eval(), torch.randn(1, 2), 1, ["onnxruntime"])
    assert [runtime.name for runtime in found] == ["sparsify engine"]
    assert notes == ("torch.compile: does not run here: no compiler", "onnxruntime: left out")


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": (["bench"], ["either a RUN or FILE, or --model SPEC"]),
    "both": (["bench", "runs/a", "--model", "timm:resnet18"], ["either a RUN or FILE, or --model SPEC"]),
    "no file": (["bench", "runs/nothing-here"], ["no such file or run"]),
    "model": (["bench", "--model", "timm:resnt18"], ["did you mean 'timm:resnet18'"]),
    "sparsity": (["bench", "--model", "timm:resnet18", "--sparsity", "1.5"], ["--sparsity", "1.5"]),
    "sparsity of a file": (["bench", "runs/a", "--sparsity", "0.5"], ["--sparsity belongs to --model"]),
    "batch": (["bench", "runs/a", "--batch", "0"], ["--batch", "x>=1"]),
    "skip": (["bench", "runs/a", "--skip", "onnx"], ["--skip", "'onnxruntime'"]),
    "chart": (["bench", "--model", "timm:resnet18", "--plot", "a.gif"], ["--plot a.gif", ".pdf, .png, .svg"]),
    "chart nowhere": (["bench", "--model", "timm:resnet18", "--plot", "nowhere/a.png"], ["nowhere/a.png"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_imports_no_torch(name: str) -> None:
    args, expected = MISTAKES[name]
    code = (
        "import sys\nsys.path.insert(0, '.')\nfrom cli import main\n"
        f"try:\n    main({args!r})\nfinally:\n    assert not {{'torch', 'numba', 'matplotlib'}} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sparsify: ") and done.stderr.count("\n") == 1
    for part in expected:
        assert part in done.stderr


def test_a_size_that_the_model_refuses_is_one_line(sparsify: Run) -> None:
    code, out, err = sparsify("bench", "--model", "timm:vit_tiny_patch16_224", "--image-size", 33, *QUICK)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sparsify: --image-size: the model takes no image of 33 pixels")


def test_turns_alternate_and_their_first_pass_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], ""

    def run(name: str, seconds: list[float]) -> Callable[[], None]:
        left = iter(seconds)

        def once() -> None:
            nonlocal order
            order += name
            now[0] += next(left)

        return once

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    # a: a quarter of a turn, so four passes of it after one that does not count; b: longer than a turn, so one.
    turn = bench_runtimes.TURN
    a = [turn / 4, *([9.0, 1.0, 2.0, 3.0, 4.0] * 2)]
    found = bench_runtimes.alternated({"a": run("a", a), "b": run("b", [2 * turn, 5.0, 7.0])}, 2)
    assert order == "ab" + "aaaaab" + "baaaaa"
    assert found["a"] == pytest.approx([2.5, 2.5]) and found["b"] == pytest.approx([5.0, 7.0])


def test_the_table_of_runtimes_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {
        "sparsify engine": [0.002, 0.002, 0.002],
        "torch, contiguous": [0.011, 0.012, 0.013],
        "torch, channels last": [0.008, 0.010, 0.012],
    }
    runtimes = [bench_runtimes.Runtime(name, lambda: None, 1.25) for name in seconds]
    Console(width=80).print(bench_runtimes.result_table(runtimes, seconds, 4))
    found = rows(capsys.readouterr().out)
    # Ratios by round to channels last, the better layout: 4, 5, 6 times; 8/11, 10/12, 12/13.
    assert found["sparsify engine"] == ["2.00", "2.00", "-", "2.00", "2,000", "5.00", "1.2", "s"]
    assert found["torch, contiguous"] == ["12.0", "11.5", "-", "12.5", "333", "0.83", "1.2", "s"]
    assert found["torch, channels last"] == ["10.0", "9.00", "-", "11.0", "400", "1.00", "1.2", "s"]


@pytest.mark.parametrize(("name", "beginning"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_charts_of_every_kind(name: str, beginning: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = [bench_plot.Bar(f"layer{i}", 1e-3 * (i + 1), 4e-3 * i, how) for i, how in enumerate(bench_steps.KINDS)]
    bench_plot.draw(shown, 0.02, "Model, 1 image, one thread", str(tmp_path / name))
    content = (tmp_path / name).read_bytes()
    assert content.startswith(beginning)
    if name == "a.SVG":
        # 1 + 2 + 3 + 4 of 20 ms; 4 of 2 ms.
        wanted = (b"layer3", b"engine: other kernels", b"PyTorch", b"50 % of the engine", b" 2.0x", b"milliseconds")
        assert all(text in content for text in wanted)


def test_the_slowest_layers_come_first_with_torch_beside_them(pruned: Path) -> None:
    model, x = library.load(pruned, fold=True).eval(), torch.randn(1, 3, 32, 32)
    engine = library.compile(model, x, threads=1, tune=False)
    strategy = Strategy("split")
    _, steps = bench_steps.timed_steps(engine, x, strategy)
    shown = bench_plot.bars(engine, x, strategy, steps)
    seconds = [bar.engine for bar in shown]
    assert len(shown) == min(bench_plot.MOST, len({step.line.name for step in steps}))
    assert seconds == sorted(seconds, reverse=True)
    convolutions = [bar for bar in shown if bar.name.endswith(("conv1", "conv2", "conv3"))]
    assert len(convolutions) > 3 and all(bar.torch > 0 for bar in convolutions)
    for bar in shown:
        assert bar.engine == pytest.approx(sum(s.seconds for s in steps if s.line.name == bar.name))


def test_what_is_timed_of_a_run_is_kept_and_dead_channels_are_left_out(sparsify: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: timm:test_resnet\n")
    model = library.build_model("timm:test_resnet", num_classes=10)
    library.convert(model)
    masks = library.get_masks(model)
    masks["layer1.0.conv2.weight"][:, :4] = False  # nothing reads these channels
    library.set_masks(model, masks)
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}}
    library.save(model, run / "model.safetensors", **about, extra={"input_shape": [3, 32, 32]})  # type: ignore[arg-type]
    code, out, err = sparsify("bench", run, *QUICK)
    assert (code, err) == (0, "") and f"{run / 'bench.json'}: kept for sparsify report {run}" in out
    [found] = read_bench_results(run)
    assert [one.name for one in found.timings] == [*rows(out)]
    assert {"shrunk, contiguous", "shrunk, channels last"} <= {one.name for one in found.timings}
    assert found.shape == (1, 3, 32, 32) and found.threads == 1 and found.versions["torch"] == version("torch")
    for one in found.timings:
        assert 0 < one.low <= one.median <= one.high
        assert 1e3 * one.median == pytest.approx(float(rows(out)[one.name][0].replace(",", "")), rel=0.02, abs=0.006)


class Strided(nn.Module):
    """Steps of every kind that the table tells apart, and one operation that is torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.conv(x).erf().flatten(1))
        return y


@pytest.mark.parametrize("strategy", [Strategy("split"), Strategy("chunks", 2)])
def test_steps_of_one_layer_that_are_alike_are_one_row(strategy: Strategy) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 4, 4)
    engine = library.compile(Strided().eval(), x, threads=1, tune=False)
    images, steps = bench_steps.timed_steps(engine, x, strategy)
    assert images == (2 if strategy.kind == "chunks" else 5)
    hows = [(step.line.name, bench_steps.kind(step.line.how)) for step in steps]
    # Pixels for a stride are chosen in four steps; what follows the convolution goes to torch's layout.
    assert [how for name, how in hows if name == "conv"] == ["other kernels", "dense kernel", "other kernels"]
    assert ("erf", "torch") in hows
    assert all(step.seconds > 0 for step in steps)


class Branching(nn.Module):
    """Its control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else x.neg()


def test_a_model_that_is_left_to_torch_has_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    skip = ("torch.compile", "onnxruntime")
    bench._bench(Branching(), (1, 1, 4, 4), 1, 2, skip, True, None)
    out = capsys.readouterr().out
    assert "engine: PyTorch: " in out and "no weights; 1 image of 1x4x4" in out and "each step" not in out
    with pytest.raises(RunError, match="--plot: no steps to draw"):
        bench._bench(Branching(), (1, 1, 4, 4), 1, 2, skip, False, "a.png")


def test_figures_have_three_digits() -> None:
    assert [bench_runtimes.figures(value) for value in (0.123, 9.994, 12.34, 123.4, 12345.6)] == [
        "0.12",
        "9.99",
        "12.3",
        "123",
        "12,346",
    ]
