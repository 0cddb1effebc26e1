"""The runtime benchmark: what it counts, whose turn it is, and a DeepSparse that is played by NumPy."""

import importlib
import json
import stat
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

FAKE = """
import numpy as np

__version__ = "1.8.0"


class Engine:
    def __init__(self, model, batch_size, num_cores):
        assert open(model, "rb").read() and (batch_size, num_cores) == (2, 1)

    def run(self, x, val_inp=True):
        return [x[0].reshape(len(x[0]), -1) * {factor}]
"""


def script(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def interpreter(folder: Path, code: str) -> str:
    """Return a Python that has this module as its deepsparse."""
    (folder / "deepsparse.py").write_text(code)
    python = folder / "python"
    # Isolation (-I) would leave out the folder as well.
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


def test_networks_are_pruned_but_for_the_ends_and_their_norms_do_something() -> None:
    model = script("runtime.contenders").network("cifar:resnet20", 0.75)
    share = {name: float((p == 0).double().mean()) for name, p in model.named_parameters() if p.dim() > 1}
    assert share.pop("conv1.weight") == share.pop("fc.weight") == 0
    assert set(share.values()) == {0.75}
    norm = model.get_submodule("bn1")
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert not torch.isin(tensor, torch.tensor([0.0, 1.0])).any()


def test_multiply_adds_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[0] = 0  # 9 of 36
        model[2].weight[:, 0] = 0  # 3 of 48
    # Two images: 2x2 positions of the convolution, one of the linear layer.
    found = script("runtime.contenders").multiply_adds(model.eval(), torch.randn(2, 2, 4, 4))
    assert found == (2 * (4 * 27 + 45), 2 * (4 * 36 + 48))


def test_turns_alternate_and_their_first_pass_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = script("runtime.contenders")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    order: list[tuple[str, int]] = []

    def turn(name: str, seconds: float) -> Any:
        def passes(count: int) -> list[float]:
            order.append((name, count))
            return [9.0, *[seconds] * (count - 1)]

        return passes

    found = contenders.take_turns({"a": turn("a", contenders.TURN / 4), "b": turn("b", 3.0)}, 2)
    assert order == [("a", 2), ("b", 2), ("a", 5), ("b", 2), ("b", 2), ("a", 5)]
    assert found == {"a": [contenders.TURN / 4] * 2, "b": [3.0] * 2}


def test_deepsparse_waits_for_its_turn_and_is_checked(tmp_path: Path) -> None:
    contenders = script("runtime.contenders")
    x = torch.randn(2, 3)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    python = interpreter(tmp_path, FAKE.format(factor=1))
    with contenders.deepsparse_turn(python, tmp_path, x, x, 1) as turn:
        assert len(turn(3)) == 3 and all(seconds > 0 for seconds in turn(2))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x.numpy())
    python = interpreter(tmp_path, FAKE.format(factor=1.01))
    with pytest.raises(RuntimeError, match="DeepSparse: the outputs differ by 1.0e-02"):
        with contenders.deepsparse_turn(python, tmp_path, x, x, 1):
            pass
    python = interpreter(tmp_path, "raise ImportError('no such library')")
    with pytest.raises(RuntimeError, match=r"(?s)DeepSparse: .*no such library"):
        with contenders.deepsparse_turn(python, tmp_path, x, x, 1):
            pass


def row(**given: Any) -> dict[str, Any]:
    seconds = {"engine": 0.01, "torch, contiguous": 0.04, "torch, channels last": 0.03, "onnxruntime": 0.025}
    made: dict[str, Any] = {
        "network": "a",
        "batch": 64,
        "sparsity": 0.9,
        "threads": 2,
        "rounds": 3,
        "way": "all threads on all images",
    }
    made |= {"multiply_adds": 10**8, "all_multiply_adds": 10**9}
    for name, value in seconds.items():
        made |= {name: value, _q(name): _spread(value)}
    return made | given


def _q(name: str) -> str:
    return f"{name}, quartiles"


def _spread(value: float) -> str:
    return json.dumps([0.9 * value, 1.1 * value])


def test_the_table_has_the_better_layout_and_the_ratios() -> None:
    summary = script("runtime.summary")
    text = summary.table([row()])
    assert "DeepSparse was not timed" in text
    assert "| a | 64 | 90% | 10 (9 to 11) | 30 (27 to 33) | 25 (22.5 to 27.5) | 3.00 | 2.50 | all threads" in text
    text = summary.table([row(deepsparse=0.02, **{_q("deepsparse"): _spread(0.02)})])
    assert "| 20 (18 to 22) | 3.00 | 2.50 | 2.00 | all threads" in text and "not timed" not in text


def test_rates_are_set_beside_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = script("runtime.summary")
    threads = torch.get_num_threads()
    assert summary.matrix_product(1, 64) > 1e6 and summary.dense_convolution(1, 4, 8) > 1e6
    torch.set_num_threads(threads)
    monkeypatch.setattr(summary, "matrix_product", lambda threads: 50e9)
    monkeypatch.setattr(summary, "dense_convolution", lambda threads: 100e9)
    text = summary.rates([{name: str(value) for name, value in row().items()}])  # as csv has it
    # 0.2 and 2 GFLOP in 10 ms, 2 GFLOP in 30 ms.
    assert "| a | 64 | 90% | 20 | 20% | 200 | 200% | 67 | 67% |" in text
    assert "50 GFLOP/s, and\na 3 x 3" in text and "channels last, 100." in text


def test_the_scaling_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row(batch=batch, threads=t, sparsity=s) for batch in (1, 64) for t in (1, 2) for s in (0.5, 0.9)]
    rows += [row(batch=batch, threads=t) for batch in (2, 4) for t in (1, 2)]
    text = script("runtime.summary").scaling(rows, tmp_path / "a.svg")
    assert "| 64 | 2 | 90% | 10 | 3.00 | 2.50 | 6,400 |" in text and "](runtime/a.svg)" in text
    chart = (tmp_path / "a.svg").read_text()
    for label in ("batch 1, 1 thread", "batch 64, 2 threads", "ONNX Runtime, 2 threads", "engine, 1 thread"):
        assert f"<!-- {label} -->" in chart
    assert "<!-- batch 2, 1 thread -->" not in chart


def test_a_cell_is_measured_and_the_script_tries_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    runtime, contenders = script("runtime.__main__"), script("runtime.contenders")
    before = torch.get_num_threads()
    monkeypatch.setattr(contenders, "TURN", 0.0)
    monkeypatch.setattr(contenders, "PAUSE", 0.0)
    monkeypatch.setattr(runtime, "NETWORKS", {"cifar:resnet20": (2,)})
    monkeypatch.setattr(runtime, "record", lambda *_: pytest.fail("a trial writes nothing"))
    monkeypatch.setattr(sys, "argv", "runtime --only cifar:resnet20 --sparsities 0.9 --rounds 1 --threads 1".split())
    try:
        runtime.main()
    finally:
        torch.set_num_threads(before)
    out = capsys.readouterr().out
    assert out.startswith("cifar:resnet20 x 2, 90%, threads 1: engine ") and "| cifar:resnet20 | 2 | 90% |" in out
