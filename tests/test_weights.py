import argparse
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsify.errors import SparsifyError
from sparsify.export.save import save
from sparsify.models import build_model
from sparsify.surgery.shrink.cuts import Cuts, apply_cuts
from sparsify.weights import load_checkpoint, load_state, read_weights


def network(classes: int = 3, width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


def source() -> nn.Sequential:
    torch.manual_seed(1)
    model = network()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.rand_like(value) if value.is_floating_point() else value + 5)
    return model


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def assert_equal(model: nn.Module, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


STATE = dict(source().state_dict())
OTHER = {key: torch.zeros_like(value) for key, value in STATE.items()}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (STATE, ""),
        (prefixed(STATE, "module."), ""),
        (prefixed(STATE, "_orig_mod.module."), ""),
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": prefixed(STATE, "module."), "optimizer": {"state": {}}}, "model"),
        ({"state_dict": OTHER, "state_dict_ema": STATE, "args": argparse.Namespace(lr=0.1)}, "state_dict_ema"),
        ({"model": OTHER, "model_ema": {"state_dict": STATE}}, "model_ema.state_dict"),
        ({"model_ema": {"n_averaged": torch.tensor(3), **prefixed(STATE, "module.")}}, "model_ema"),
    ],
)
def test_weights_are_found_in_the_usual_wrappings(content: dict[str, Any], part: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    model = network()
    report = load_checkpoint(model, tmp_path / "a.pt")
    assert_equal(model, STATE)
    assert report.source == part
    assert report.loaded == list(STATE) and report.reinitialised == []


def test_what_is_no_weight_is_reported_as_ignored(tmp_path: Path) -> None:
    torch.save({"n_averaged": torch.tensor(3), "note": "hello", **prefixed(STATE, "module.")}, tmp_path / "a.pt")
    assert load_checkpoint(network(), tmp_path / "a.pt").ignored == ["n_averaged", "note"]


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", metadata={"format": "pt"})
    model = network()
    load_checkpoint(model, tmp_path / "a.safetensors")
    assert_equal(model, STATE)


def test_head_of_another_size_keeps_its_values_and_is_named() -> None:
    model = network(classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_state(model, STATE)
    assert report.reinitialised == ["3.weight", "3.bias"]
    after = model.state_dict()
    assert torch.equal(after["3.weight"], before["3.weight"]) and torch.equal(after["0.weight"], STATE["0.weight"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({key: value for key, value in STATE.items() if key != "0.bias"}, "missing: 0.bias$"),
        ({**STATE, "5.weight": torch.zeros(1)}, "unexpected: 5.weight$"),
        (dict(network(width=6).state_dict()), r"of another shape: 0.weight \(6, 2\) for \(4, 2\), 0.bias"),
        ({**STATE, "3.weight": torch.zeros(9, 4), "3.bias": torch.zeros(8)}, "of another shape: 3.weight"),
        ({"a": torch.zeros(1)}, "missing: 0.weight, 0.bias, .*; unexpected: a$"),
    ],
)
def test_weights_that_do_not_fit_list_their_keys_and_change_nothing(state: dict[str, Tensor], message: str) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SparsifyError, match=f"^weights: the weights do not fit the model: .*{message}"):
        load_state(model, state, source="weights")
    assert_equal(model, before)


def test_long_lists_of_keys_are_cut() -> None:
    with pytest.raises(SparsifyError, match="and [0-9]+ more$"):
        load_state(build_model("cifar:resnet20"), {})


class Payload:
    """Would write a file if it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    torch.save({"state_dict": STATE, "extra": Payload(mark)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(mark)))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(SparsifyError, match="holds more than tensors") as caught:
            load_checkpoint(network(), tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hello world\n", "a text that starts with 'hello world'"),
        ("<!DOCTYPE html>\n<title>404</title>", "a text that starts with '<!DOCTYPE html> <title>404</title>'"),
        (67 * "図", f"a text that starts with '{37 * '図'}[.]{{3}}'"),  # letters of 3 bytes
        ("version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS to it; .*: git lfs pull"),
    ],
)
def test_a_text_under_the_name_of_weights_is_told(tmp_path: Path, text: str, what: str) -> None:
    for name, kind in (("a.pt", "torch"), ("a.safetensors", "safetensors")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SparsifyError, match=f"{name}: not a {kind} file, but {what}$"):
            read_weights(tmp_path / name)


def test_a_traced_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # of torch, that tracing is deprecated
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "traced.pt")
    with pytest.raises(SparsifyError, match=r"traced.pt: not a torch file.*TorchScript"):  # and no warning beside it
        read_weights(tmp_path / "traced.pt")


def test_whole_model_in_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(SparsifyError, match=r"\(torch.nn.*Sequential\), .*; save model.state_dict\(\) instead$"):
        load_checkpoint(network(), tmp_path / "a.pt")


def test_files_of_sparsify_say_how_they_become_plain_weights(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", metadata={"format": "sparsify"})
    with pytest.raises(SparsifyError, match="sparsify export .*a.safetensors --format dense"):
        load_checkpoint(network(), tmp_path / "a.safetensors")
    save_file(STATE, tmp_path / "b.safetensors", metadata={"sparsify_checkpoint": "1"})
    with pytest.raises(SparsifyError, match="export the run instead"):
        load_checkpoint(network(), tmp_path / "b.safetensors")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch(mode=0o000)
    with pytest.raises(SparsifyError, match="permission denied"):
        load_checkpoint(network(), tmp_path / name)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 4, "truncated"])
def test_damaged_file_is_one_line(name: str, content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        torch.save(STATE, path) if path.suffix == ".pt" else save_file(STATE, path)
        content = path.read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(SparsifyError) as caught:
        load_checkpoint(network(), path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_file_without_a_state_dict_tells_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt")
    with pytest.raises(SparsifyError, match="holds no state dict .*; it holds epoch, lr"):
        load_checkpoint(network(), tmp_path / "a.pt")
    with pytest.raises(SparsifyError, match="no such checkpoint"):
        load_checkpoint(network(), tmp_path / "b.pt")


def test_build_model_starts_from_a_checkpoint(tmp_path: Path) -> None:
    state = build_model("cifar:resnet20", num_classes=10).state_dict()
    torch.save(state, tmp_path / "a.pt")
    model = build_model("cifar:resnet20", num_classes=4, checkpoint=tmp_path / "a.pt")
    assert torch.equal(model.state_dict()["conv1.weight"], state["conv1.weight"])
    assert model.state_dict()["fc.weight"].shape == (4, 128)


def test_the_weights_of_a_cut_model_load_into_one_alike_and_say_what_they_are_to_another(tmp_path: Path) -> None:
    cuts = Cuts({"0.weight": {0: (1,)}, "0.bias": {0: (1,)}, "3.weight": {1: (1,)}}, {"0.out_features": 3})
    norm: dict[str, dict[int, tuple[int, ...]]] = {
        f"1.{name}": {0: (1,)} for name in ("weight", "bias", "running_mean", "running_var")
    }
    cuts = replace(cuts, removed={**cuts.removed, **norm})
    model, path = apply_cuts(source(), cuts), tmp_path / "a.safetensors"
    save(model, path, format="dense")
    alike = apply_cuts(network(), cuts)
    assert not load_checkpoint(alike, path).reinitialised
    assert_equal(alike, model.state_dict())
    with pytest.raises(SparsifyError, match=r"0.weight \(3, 2\) for \(4, 2\).* a model that was cut: sparsify.load"):
        load_checkpoint(network(), path)
