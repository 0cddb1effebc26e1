import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sparsify.datasets import DATASETS, default_of_each, known_names, normalised_by_timm
from sparsify.errors import SparsifyError
from sparsify.models import build_model
from sparsify.training.batches.input_size import input_for
from sparsify.training.batches.resident import Images, Normalisation, TensorLoader, View, normalisation_of
from sparsify.training.data.datasets import count_classes, load_data
from sparsify.training.data.image_files import FileLoader
from sparsify.training.recipe.lookups import check_data_name
from sparsify.training.recipe.settings import DataSettings


class Takes(nn.Module):
    """Refuses images that are smaller than `size` or have other channels."""

    def __init__(self, channels: int = 3, size: int = 1, exactly: bool = False) -> None:
        super().__init__()
        self.channels, self.size, self.exactly = channels, size, exactly
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < self.size or (self.exactly and x.shape[2] != self.size):
            raise ValueError(f"{x.shape[2]} is not {self.size}")
        return self.norm(x).mean((2, 3))  # type: ignore[no-any-return]


PLAIN = Normalisation(torch.zeros(1), torch.ones(1))


def numbered(count: int, size: int = 2) -> Images:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, size, size).contiguous()
    return Images(pixels, torch.arange(count))


def labels(batches: Iterator[tuple[Tensor, Tensor]]) -> list[list[int]]:
    return [label.tolist() for _, label in batches]


def test_digits_are_those_of_the_source() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    source = datasets.load_digits()
    data, count = load_data(DataSettings(crop_padding=0), Takes(channels=1)), DATASETS["digits"].train_count
    assert data.test is not None
    images, classes = map(torch.cat, zip(*data.test, strict=True))
    assert classes.tolist() == source.target[count:].tolist()
    train = torch.from_numpy(source.images[:count]).float()
    expected = (torch.from_numpy(source.images[count:]).float() - train.mean()) / train.std(correction=0)
    assert torch.allclose(images[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.embedded])
def test_an_embedded_set_is_as_its_row_says(name: str) -> None:
    row, settings = DATASETS[name], DataSettings(name=name)
    data = load_data(settings, Takes(channels=row.channels))
    assert data.input_shape == (row.channels, row.image_size, row.image_size)
    assert (data.train_count, data.test_count, count_classes(settings)) == (
        row.train_count,
        row.test_count,
        row.classes,
    )
    labels = torch.cat([classes for _, classes in data.test])
    assert set(labels.tolist()) == set(range(row.classes))


def test_lists_of_data_sets_follow_from_the_table() -> None:
    assert known_names() == "digits (embedded), cifar10, cifar100, folder:PATH, hf:OWNER/NAME, or a name of timm.data"
    assert default_of_each(lambda row: row.crop_padding) == "4 for cifar10 and cifar100, 1 for digits"
    assert [name for name in (*DATASETS, "folder:x", "torch/mnist", "python:Own") if normalised_by_timm(name)] == [
        "folder:x",
        "torch/mnist",
    ]


def test_digits_have_their_fixed_split_size_and_classes() -> None:
    data = load_data(DataSettings(), Takes())
    assert (data.train_count, data.test_count, data.num_classes) == (1500, 297, 10)
    assert data.input_shape == (3, 8, 8)
    assert len(data.train) == 12
    assert data.description == "digits: 1,500 training and 297 test images of 8x8 pixels, 3 channels"
    shapes = [images.shape for images, _ in data.train]
    assert shapes == [(128, 3, 8, 8)] * 11 + [(92, 3, 8, 8)]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Takes(1, 1), (1, 8)),
        (Takes(3, 20), (3, 24)),
        (Takes(3, 224, exactly=True), (3, 224)),
    ],
)
def test_images_keep_their_size_unless_the_model_refuses_it(model: nn.Module, expected: tuple[int, int]) -> None:
    assert input_for(model, (1, 8)) == expected


def test_vgg_gets_the_smallest_size_it_takes() -> None:
    assert input_for(build_model("cifar:vgg19_bn"), (1, 8)) == (3, 32)


def test_size_a_model_declares_is_tried() -> None:
    model = Takes(3, 100, exactly=True)
    model.pretrained_cfg = {"input_size": (3, 100, 100)}  # type: ignore[assignment]
    assert input_for(model, (1, 8)) == (3, 100)


def test_model_that_takes_nothing_tells_its_reason() -> None:
    with pytest.raises(SparsifyError, match=r"takes no image of 8 to 640 pixels: 640 is not 1000"):
        input_for(Takes(3, 1000), (1, 8))
    with pytest.raises(SparsifyError, match=r"takes no image of 16 pixels: 16 is not 20"):
        input_for(Takes(3, 20), (1, 8), image_size=16)


def test_trying_sizes_leaves_the_model_and_the_random_state_alone() -> None:
    model = build_model("cifar:resnet20").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    input_for(model, (1, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_epoch_is_a_permutation_that_depends_on_seed_and_index_alone() -> None:
    loaders = [
        TensorLoader(numbered(10), View(2, 1, PLAIN), batch_size=4, seed=seed, shuffle=True) for seed in (1, 1, 2)
    ]
    first = labels(loaders[0].epoch(0))
    assert sorted(sum(first, [])) == list(range(10))
    assert [len(batch) for batch in first] == [4, 4, 2]
    second = labels(loaders[0].epoch(1))
    assert second != first and labels(loaders[0].epoch(0)) == first
    assert labels(loaders[1].epoch(1)) == second
    assert labels(loaders[2].epoch(0)) != first


def test_epoch_goes_on_from_a_batch_with_the_same_bits() -> None:
    data = load_data(DataSettings(batch_size=64), Takes(), seed=3)
    whole = list(data.train.epoch(2))
    rest = list(data.train.epoch(2, start=20))
    assert len(rest) == 4
    assert all(torch.equal(a, b) for x, y in zip(whole[20:], rest, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"), [(10, True, [4, 4]), (9, False, [4, 4]), (10, False, [4, 4, 2]), (8, True, [4, 4])]
)
def test_short_last_batch_is_dropped_on_request_and_a_single_image_always(
    count: int, drop_last: bool, sizes: list[int]
) -> None:
    view = View(2, 1, PLAIN)
    loader = TensorLoader(numbered(count), view, batch_size=4, shuffle=True, drop_last=drop_last)
    assert [len(batch) for batch in labels(loader.epoch(0))] == sizes
    assert len(loader) == len(sizes)


def test_test_images_come_in_order_and_all() -> None:
    loader = TensorLoader(numbered(9), View(2, 1, PLAIN, crop_padding=1, flip=True), batch_size=4)
    assert sum(labels(iter(loader)), []) == list(range(9))
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, numbered(9).pixels.float())


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(SparsifyError, match="data.batch_size: 3 images make no batch of 4"):
        TensorLoader(numbered(3), View(2, 1, PLAIN), batch_size=4, shuffle=True, drop_last=True)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_every_crop_and_flip_is_one_of_those_the_padded_image_has(mode: str) -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 3, 3)
    padded = np.pad(image[0].numpy(), 1, mode="constant" if mode == "zero" else "reflect").astype(np.float32)
    expected = set()
    for top in range(3):
        for left in range(3):
            crop = padded[top : top + 3, left : left + 3]
            expected |= {crop.tobytes(), np.ascontiguousarray(crop[:, ::-1]).tobytes()}
    images = Images(image.expand(600, 1, 3, 3).contiguous(), torch.zeros(600, dtype=torch.int64))
    view = View(3, 1, PLAIN, crop_padding=1, padding_mode=mode, flip=True)
    [(batch, _)] = TensorLoader(images, view, batch_size=600, shuffle=True).epoch(0)
    assert {one[0].numpy().tobytes() for one in batch} == expected


def test_padding_that_cannot_be_reflected_is_refused() -> None:
    with pytest.raises(SparsifyError, match="data.crop_padding: 2 pixels cannot be reflected"):
        TensorLoader(numbered(4), View(2, 1, PLAIN, 2, "reflect"), batch_size=4, shuffle=True)


def test_normalisation_is_per_channel_and_exact() -> None:
    pixels = torch.randint(0, 256, (50, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 2] = 7
    found = normalisation_of(pixels)
    reference = pixels.double()
    assert torch.allclose(found.mean.double(), reference.mean((0, 2, 3)))
    assert torch.allclose(found.std[:2].double(), reference.std((0, 2, 3), correction=0)[:2])
    images, _ = next(iter(TensorLoader(Images(pixels, torch.zeros(50)), View(5, 3, found), batch_size=50)))
    assert torch.isfinite(images).all()


def test_grey_images_are_repeated_and_enlarged_for_the_model() -> None:
    [(images, _)] = TensorLoader(numbered(3), View(5, 3, PLAIN), batch_size=3)
    assert torch.equal(images, torch.arange(3.0)[:, None, None, None].expand(3, 3, 5, 5))


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write a small set in CIFAR-100's format and make torchvision expect its checksums."""
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    arrays = {
        name: random.integers(0, 256, (count, 3072), dtype=np.uint8) for name, count in (("train", 6), ("test", 2))
    }
    content = {name: {"data": value, "fine_labels": list(range(len(value)))} for name, value in arrays.items()}
    content["meta"] = {"fine_label_names": [str(number) for number in range(100)]}
    checksums = {}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", checksums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", checksums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": checksums["meta"]})
    return arrays


def test_cifar100_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_cifar100(tmp_path, monkeypatch)
    data = load_data(DataSettings(name="cifar100", dir=str(tmp_path), batch_size=4), Takes())
    assert data.num_classes == 100 and data.input_shape == (3, 32, 32) and len(data.train) == 2
    assert data.test is not None
    [(images, classes)] = data.test
    assert classes.tolist() == [0, 1]
    train = arrays["train"].reshape(6, 3, 32, 32).astype(np.float64)
    mean, std = (train.mean((0, 2, 3))[:, None, None], train.std((0, 2, 3))[:, None, None])
    expected = (arrays["test"].reshape(2, 3, 32, 32) - mean) / std
    assert np.allclose(images.numpy(), expected, atol=1e-5)


def test_missing_cifar_names_the_files_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def unreachable(self: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", unreachable)
    with pytest.raises(SparsifyError) as caught:
        load_data(DataSettings(name="cifar10", dir=str(tmp_path)), Takes())
    text = str(caught.value)
    assert text.startswith(f"data.dir: {tmp_path}/cifar-10-batches-py should hold the files data_batch_1 to")
    assert "no network" in text and "\n" not in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for number, name in enumerate(("cat", "dog", "owl")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                image = Image.new("RGB", (40, 36), (number * 80, index * 20, 10))
                image.save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def test_folder_of_images_is_a_data_set(folder: Path) -> None:
    settings = DataSettings(name=f"folder:{folder}", batch_size=7, workers=0)
    assert count_classes(settings) == 3
    data = load_data(settings, Takes(), seed=1)
    assert (data.train_count, data.test_count, data.num_classes) == (15, 6, 3)
    # The shorter side of the first image; the last batch of a single image is left out.
    assert data.input_shape == (3, 36, 36) and len(data.train) == 2
    assert [images.shape for images, _ in data.train.epoch(0)] == [(7, 3, 36, 36)] * 2
    assert torch.cat([classes for _, classes in data.test]).tolist() == [0, 0, 1, 1, 2, 2]


def test_image_files_are_varied_by_seed_epoch_and_image_alone(folder: Path) -> None:
    data = load_data(DataSettings(name=f"folder:{folder}", batch_size=4, workers=0), Takes(), seed=1)
    state = torch.get_rng_state()
    whole = list(data.train.epoch(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    rest = list(data.train.epoch(1, start=2))
    assert torch.equal(rest[0][0], whole[2][0]) and torch.equal(rest[0][1], whole[2][1])
    assert not torch.equal(next(data.train.epoch(2))[0], whole[0][0])


def test_worker_processes_give_the_same_images(folder: Path) -> None:
    data = load_data(DataSettings(name=f"folder:{folder}", batch_size=8, workers=0), Takes(), seed=1)
    assert isinstance(data.train, FileLoader)
    alone = next(data.train.epoch(0))
    data.train.workers = 1
    assert torch.equal(next(data.train.epoch(0))[0], alone[0])


def test_folder_without_its_parts_or_with_other_classes_is_refused(folder: Path) -> None:
    (folder / "val" / "owl").rename(folder / "val" / "eel")
    with pytest.raises(SparsifyError, match="differ in their classes: eel, owl"):
        count_classes(DataSettings(name=f"folder:{folder}"))
    (folder / "val").rename(folder / "other")
    with pytest.raises(SparsifyError, match="should hold folders train and test"):
        count_classes(DataSettings(name=f"folder:{folder}"))


def test_set_of_timm_data_is_read_in_the_size_and_channels_asked_for(folder: Path) -> None:
    settings = DataSettings(name="torch/image_folder", dir=str(folder), workers=0, batch_size=5, image_size=20)
    assert count_classes(settings) == 3
    data = load_data(settings, Takes(channels=1))
    assert (data.train_count, data.test_count, data.input_shape) == (15, 6, (1, 20, 20))
    assert [images.shape for images, _ in data.test] == [(6, 1, 20, 20)]


@pytest.mark.parametrize("name", ["torch/nonsense", "torch/mnist"])
def test_set_that_timm_cannot_read_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def unreachable(self: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(MNIST, "download", unreachable)
    with pytest.raises(SparsifyError, match=f"^data.name: .*'{name}'"):
        count_classes(DataSettings(name=name, dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "unknown data set 'cifar'; did you mean 'cifar10'"),
        ("folder:/nowhere/at/all", "no such folder '/nowhere/at/all'"),
        ("imagenet", "unknown data set 'imagenet' \\(known: digits, cifar10"),
    ],
)
def test_wrong_data_set_is_one_line(name: str, message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        check_data_name(DataSettings(name=name))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_sees_the_same_images_as_the_cpu() -> None:
    batches = [
        next(load_data(DataSettings(), Takes(), seed=1, device=device).train.epoch(0)) for device in ("cpu", "cuda")
    ]
    assert torch.equal(batches[0][0], batches[1][0].cpu())
    assert torch.equal(batches[0][1], batches[1][1].cpu())
