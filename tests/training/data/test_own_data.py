"""Data given from Python: what is taken from a batch, what is refused, and that a run goes on to the same bits."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sparsify.errors import SparsifyError
from sparsify.training.data.own_data import check_takes, own_data, own_settings
from sparsify.training.recipe.settings import DataSettings
from sparsify.training.run import keeper
from sparsify.training.run.train import train

PLAIN = DataSettings(batch_size=4, test_batch_size=8, workers=0)


class Noisy(Dataset[Any]):
    """Images that are drawn anew each time, from all three global generators; class index = index mod 3."""

    def __init__(self, count: int = 10) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = random.random() + np.random.rand() + torch.rand(())
        return torch.full((1, 8, 8), float(index)) + noise, index % 3


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(1, 8, 8), 0


class Counted(Endless):
    def __len__(self) -> int:
        return 1


class Breaking(Noisy):
    """Raises at one index."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.at:
            raise KeyError("rose")
        return super().__getitem__(index)


class Unsized:
    """A sampler of batches that does not tell how many it has."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0, 1, 2]


class Short(Unsized):
    """A sampler of batches that has fewer than it tells."""

    def __len__(self) -> int:
        return 3


def loader(**arguments: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=4, shuffle=True, **arguments)


def drawn(source: Any, index: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(own_data(source, PLAIN, seed=1).train.epoch(index, start))


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y) for pair, pair2 in zip(one, other, strict=True) for x, y in zip(pair, pair2, strict=True)
    )


def test_shape_classes_and_counts_come_from_the_data() -> None:
    data = own_data((Noisy(), Noisy(5)), own_settings((Noisy(), Noisy(5)), PLAIN), seed=1)
    assert (data.name, data.input_shape, data.num_classes) == ("python:Noisy", (1, 8, 8), 3)
    assert (data.train_count, data.test_count, len(data.train)) == (10, 5, 3)
    assert data.test is not None and [len(labels) for _, labels in data.test] == [5]
    assert data.description == "python:Noisy: 10 training and 5 test images of 8x8 pixels, 1 channel"
    assert own_data(Noisy(), DataSettings(num_classes=7, workers=0), seed=1).num_classes == 7


def test_the_classes_a_set_tells_count_more_than_those_of_a_batch() -> None:
    source = Noisy()
    source.classes = ["a", "b", "c", "d", "e"]  # type: ignore[attr-defined]
    assert own_data(source, PLAIN, seed=1).num_classes == 5


@pytest.mark.parametrize(
    "make",
    [Noisy, loader, lambda: loader(generator=torch.Generator()), lambda: loader(num_workers=1)],
    ids=["dataset", "loader", "its own generator", "a worker"],
)
def test_an_epoch_depends_on_seed_and_index_alone_and_leaves_random_states(make: Any) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    source = make()
    first, second = drawn(source, 0), drawn(source, 1)
    assert random.getstate() == state[0] and np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == [0] * 4 + [1] * 3 + [2] * 3
    assert not same(first, second)
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    assert same(drawn(make(), 0), first) and same(drawn(make(), 1, start=2), second[2:])


def test_what_the_training_draws_between_two_batches_changes_no_batch() -> None:
    expected = drawn(loader(), 0)
    found = []
    for batch in own_data(loader(), PLAIN, seed=1).train.epoch(0):
        torch.rand(3), random.random(), np.random.rand()
        found.append(batch)
    assert same(found, expected)


def test_a_loader_keeps_its_batches_and_the_recipe_says_so() -> None:
    source = DataLoader(Noisy(), batch_size=3, drop_last=True)
    settings = own_settings((source, DataLoader(Noisy(), batch_size=9)), PLAIN)
    assert (settings.batch_size, settings.test_batch_size, settings.drop_last) == (3, 9, True)
    assert [len(labels) for _, labels in own_data(source, settings, seed=1).train] == [3, 3, 3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("digits", "data is str; it is a torch.utils.data.Dataset or DataLoader, or a pair of them"),
        ((Noisy(), Noisy(), Noisy()), r"data is \(Noisy, Noisy, Noisy\)"),
        (Endless(), "Endless has no length"),
        (DataLoader(Endless()), "Endless has no length"),
        (Counted(), "Counted is iterable alone"),
        (Noisy(0), "the training set is empty"),
        ((Noisy(), DataLoader(Noisy(0))), "the test loader has no batch"),
        (DataLoader(Noisy(3), batch_size=4, drop_last=True), "the training loader has no batch"),
        (DataLoader(Noisy(), batch_sampler=Unsized()), "the training loader has no length: object of type 'Unsized'"),  # type: ignore[arg-type]
        (loader(num_workers=1, persistent_workers=True), "set persistent_workers=False"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(SparsifyError, match=message) as caught:
        own_settings(given, PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((torch.zeros(4, 3),), "batches are pairs of images"),
        (
            (torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4).long()),
            r"this one has \(4, 3\) of uint8, \(4,\) of int64",
        ),
        ((torch.zeros(4, 3), torch.zeros(4)), r"\(4,\) of float32"),
        ((torch.zeros(0, 3), torch.zeros(0).long()), "training set is empty"),
    ],
)
def test_batches_that_are_no_images_and_classes_are_refused(tensors: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        own_data(TensorDataset(*tensors), PLAIN, seed=1)


@pytest.mark.parametrize("item", [("a", 1, 2), (torch.zeros(1, 8, 8), "cat"), {"image": torch.zeros(1, 8, 8)}])
def test_what_a_batch_is_made_of_is_told(item: Any) -> None:
    class Items(Noisy):
        def __getitem__(self, index: int) -> Any:
            return item

    told = {tuple: "a list of Tensor, tuple", dict: "a dict"}[type(item)] if len(item) < 3 else "a list of tuple, "
    with pytest.raises(SparsifyError, match=f"batches are pairs of images .*; this one is {told}"):
        own_data(Items(), PLAIN, seed=1)


def test_a_collate_function_that_returns_nothing_is_told() -> None:
    source = DataLoader(Noisy(), batch_size=4, collate_fn=lambda items: None)
    with pytest.raises(SparsifyError, match="this one is a NoneType"):
        own_data(source, PLAIN, seed=1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_class_indices_are_whole_numbers_of_any_size(dtype: torch.dtype) -> None:
    source = TensorDataset(torch.zeros(4, 1, 8, 8), torch.arange(4).to(dtype))
    found = own_data(source, PLAIN, seed=1)
    assert found.num_classes == 4 and next(iter(found.train))[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Breaking(9), "no batch can be made: KeyError: 'rose'"),
        (DataLoader(Breaking(9), batch_size=4), "no batch can be made: KeyError: 'rose'"),
        (DataLoader(Breaking(9), batch_size=4, num_workers=1), "no batch can be made: KeyError: 'rose'"),
        (DataLoader(Noisy(), batch_sampler=Short()), "the loader ended after 1 of its 3 batches"),  # type: ignore[arg-type]
    ],
)
def test_an_error_of_the_users_code_is_one_line(source: Any, message: str) -> None:
    with pytest.raises(SparsifyError, match=message) as caught:
        list(own_data(source, PLAIN, seed=1).train)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "dtype"), [(5, torch.float32), (8, torch.float64)])
def test_a_batch_that_the_model_does_not_take_is_described(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    source = DataLoader(TensorDataset(torch.zeros(count, 4).to(dtype), torch.arange(count) % 3), batch_size=4)
    one_line = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    sizes = f"{4 if count == 8 else 1}x4 of {str(dtype).removeprefix('torch.')}"
    with pytest.raises(SparsifyError, match=f"the model failed on a batch, {sizes}: ") as caught:
        train(recipe(), model=one_line, data=source, out=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_settings_that_the_data_would_not_follow_are_refused() -> None:
    with pytest.raises(
        SparsifyError, match=r"data\.flip: data given from Python find and vary their images themselves"
    ):
        own_settings(Noisy(), DataSettings(flip=False))


def test_a_class_that_was_not_expected_is_named() -> None:
    source = TensorDataset(torch.zeros(6, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0, 4]))
    data = own_data(DataLoader(source, batch_size=2), PLAIN, seed=1)
    with pytest.raises(SparsifyError, match=r"data\.num_classes: the data have a class 4, but 2 classes were expected"):
        list(data.train)


def test_a_model_that_takes_no_such_image_is_refused() -> None:
    data = own_data(Noisy(), PLAIN, seed=1)
    with pytest.raises(SparsifyError, match="the model takes no image of 1x8x8: "):
        check_takes(nn.Conv2d(3, 1, 3), data)


def recipe(**data: Any) -> dict[str, Any]:
    settings = {"epochs": 4, "log_every": 1, "device": "cpu", "optimizer": {"lr": 0.01}}
    prune = {"sparsity": 0.5, "schedule": "linear", "every": "1it"}
    return {"name": "own", "data": {"batch_size": 4, "workers": 0, **data}, "train": settings, "prune": prune}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


class Killed(Exception):
    pass


@pytest.mark.parametrize("make", [lambda: (Noisy(), Noisy(5)), loader], ids=["datasets", "loader"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            raise Killed

    whole = train(recipe(), out=tmp_path / "whole", model=model(), data=make())
    monkeypatch.setattr(keeper, "_LONGEST_SECONDS", 0.0)  # a checkpoint within the epoch too
    with pytest.raises(Killed):
        train(recipe(), out=tmp_path / "cut", model=model(), data=make(), on_record=kill)
    with pytest.raises(SparsifyError, match=r"'python:Noisy' was given from Python; .*train\(data=...\)"):
        train(None, out=tmp_path / "cut", resume=True)
    again = train(None, out=tmp_path / "cut", resume=True, model=model(), data=make())
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert ("test_accuracy" in again.metrics) == isinstance(make(), tuple)


def test_a_model_by_name_gets_the_classes_of_the_data(tmp_path: Path) -> None:
    settings = recipe() | {"model": {"name": "cifar:resnet20", "arguments": {"in_channels": 1}}, "prune": None}
    settings["train"] |= {"epochs": 1}
    result = train(settings, out=tmp_path, data=Noisy(8))
    assert result.model.fc.out_features == 3
    text = (tmp_path / "recipe.yaml").read_text()
    assert "name: python:Noisy" in text and not (tmp_path / "checkpoints" / "best.safetensors").exists()


def test_a_run_of_a_named_set_does_not_go_on_with_data_of_ones_own(tmp_path: Path) -> None:
    first = recipe() | {"data": {"name": "digits", "batch_size": 500}}
    first["train"] |= {"epochs": 1}
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    train(first, out=tmp_path, model=mlp)
    with pytest.raises(SparsifyError, match=r"data\.name is digits there and python:Noisy here"):
        train(None, out=tmp_path, resume=True, model=mlp, data=Noisy())
