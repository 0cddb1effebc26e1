import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.training.folder.checkpoint import (
    random_state,
    read_state,
    read_step,
    set_model_state,
    set_optimizer_state,
    set_random_state,
    write_state,
)

SAMPLE = Path(__file__).with_name("samples") / "version1.safetensors"

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(tree=plain)
def test_plain_values_come_back_equal_and_of_the_same_type(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "plain"
    write_state(path, {"tree": tree})
    assert repr(read_state(path)) == repr({"tree": tree})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_tensors_of_every_type_and_shape_come_back_with_their_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    # An odd number of bytes first: what follows must still be aligned.
    wide = (torch.arange(12) % 3).reshape(3, 4).to(dtype)
    tensors = [torch.ones(3, dtype=torch.bool), wide, wide.t(), wide[0, 0], wide[:0], wide]
    write_state(tmp_path / "c", {"tensors": tensors})
    for before, after in zip(tensors, read_state(tmp_path / "c")["tensors"], strict=True):
        assert after.dtype == before.dtype and torch.equal(before, after)


def test_nan_and_infinities_come_back(tmp_path: Path) -> None:
    write_state(tmp_path / "c", {"best": -math.inf, "loss": math.nan, "weights": torch.tensor([math.nan, -0.0])})
    state = read_state(tmp_path / "c")
    assert state["best"] == -math.inf and math.isnan(state["loss"])
    assert math.copysign(1, state["weights"][1]) == -1


def test_the_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    write_state(tmp_path / "c", {"model": {"w": torch.tensor([1.0, 2.0])}, "step": 3})
    with safe_open(tmp_path / "c", framework="pt") as file:
        assert file.get_tensor("state/model/w").tolist() == [1.0, 2.0]
        assert json.loads(file.metadata()["state"])["dict"][1] == ["step", 3]


def test_a_value_that_is_neither_plain_nor_a_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="state/optimizer/hook: it is a function"):
        write_state(tmp_path / "c", {"optimizer": {"hook": lambda: None}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello, this is no checkpoint", None])
def test_a_file_cut_or_foreign_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c"
    write_state(path, {"w": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(SparsifyError, match="damaged checkpoint") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_any_byte_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_state(path, {"step": 3, "tensors": (torch.arange(3), torch.tensor([True, False]))})
    written = path.read_bytes()
    for position in range(len(written)):
        path.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        with pytest.raises(SparsifyError, match="checkpoint") as caught:
            read_state(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_checkpoint_of_the_first_version_is_read() -> None:
    state = read_state(SAMPLE)
    assert [state[key] for key in ("step", "best", "seconds")] == [3, None, 0.5]
    assert state["model"]["w"].tolist() == [[1.5, -0.0], [2.0, -3.0]]
    assert state["model"]["w_mask"].tolist() == [[True, False], [True, True]]
    momentum = state["optimizer"]["state"][0]["momentum_buffer"]
    assert momentum.dtype == torch.bfloat16 and momentum.tolist() == [0.25, 0.5]
    assert state["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert state["random"]["python"] == (3, (1, 2), None)
    assert state["random"]["torch"].tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_checkpoint_of_the_first_version_ends_in_one_line_or_another_state(tmp_path: Path) -> None:
    # It has no checksums: a flipped bit in a tensor cannot be told.
    path, written = tmp_path / "c", SAMPLE.read_bytes()
    failed = 0
    for position in range(len(written)):
        path.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        try:
            read_state(path)
        except SparsifyError as error:
            failed += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert failed > 100


def test_the_step_is_told_from_the_header_and_not_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_state(path, {"step": 37, "w": torch.ones(3)})
    assert (read_step(path), read_step(SAMPLE)) == (37, 3)
    path.write_bytes(path.read_bytes().replace(b"37", b"38"))
    assert read_step(path) is None


def test_an_optimizer_that_names_a_dtype_is_kept(tmp_path: Path) -> None:
    # timm's adafactorbv has one in its parameter groups.
    write_state(tmp_path / "c", {"group": {"momentum_dtype": torch.bfloat16}})
    assert read_state(tmp_path / "c")["group"]["momentum_dtype"] is torch.bfloat16


def test_two_values_of_one_path_are_two_tensors(tmp_path: Path) -> None:
    state = {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}}
    write_state(tmp_path / "c", state)
    back = read_state(tmp_path / "c")
    assert (back["a/b"].item(), back["a"]["b"].item()) == (1, 0)


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="no such checkpoint"):
        read_state(tmp_path / "c")


def test_every_random_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    np.random.randn()  # leaves a second Gaussian waiting inside NumPy's generator
    write_state(tmp_path / "c", random_state())
    before = draw()
    set_random_state(read_state(tmp_path / "c"))
    assert draw() == before


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    data = torch.randn(8, 3, 5, 5).contiguous(memory_format=torch.channels_last)

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to(memory_format=torch.channels_last)
        return model, OPTIMIZERS[name](model.parameters())

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()

    model, optimizer = fresh()
    steps(model, optimizer)
    write_state(tmp_path / "c", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    steps(model, optimizer)

    resumed, resumed_optimizer = fresh()
    state = read_state(tmp_path / "c")
    set_model_state(resumed, state["model"])
    set_optimizer_state(resumed_optimizer, state["optimizer"])
    steps(resumed, resumed_optimizer)
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    for one, other in zip(optimizer.state.values(), resumed_optimizer.state.values(), strict=True):
        for key, value in one.items():
            if isinstance(value, torch.Tensor) and value.ndim == 4:
                assert other[key].stride() == value.stride()


def test_another_models_state_is_refused_in_one_line() -> None:
    with pytest.raises(SparsifyError, match="does not fit") as caught:
        set_model_state(nn.Linear(2, 2), {"bias": torch.zeros(3)})
    assert "\n" not in str(caught.value)
