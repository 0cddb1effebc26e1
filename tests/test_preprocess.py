"""How images become inputs outside of training: the same as in it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify import preprocess
from sparsify.errors import SparsifyError
from sparsify.models import build_model
from sparsify.preprocess import Preprocessing, from_dict
from sparsify.training.data.datasets import load_data
from sparsify.training.data.published import published_preprocessing
from sparsify.training.recipe.settings import DataSettings

HOW = Preprocessing("RGB", 36, (32, 32), "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), 3, ("cat", "dog"))


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_image_files_are_seen_as_in_an_evaluation(tmp_path: Path) -> None:
    sizes = [(40, 61), (70, 33), (32, 32), (20, 29)]
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            for number, (height, width) in enumerate(sizes):
                picture(tmp_path / part / kind / f"{number}.png", height, width, number)
    settings = DataSettings(name=f"folder:{tmp_path}", image_size=32, workers=0)
    data = load_data(settings, build_model("cifar:resnet20", num_classes=2))
    assert data.test is not None and data.preprocessing is not None
    [(images, _)] = list(data.test)
    paths = [tmp_path / "test" / kind / f"{number}.png" for kind in ("cat", "dog") for number in range(len(sizes))]
    assert np.abs(data.preprocessing.inputs(paths) - images.numpy()).max() < 1e-6
    assert data.preprocessing.classes == ("cat", "dog")


def test_digits_are_seen_as_in_an_evaluation(tmp_path: Path) -> None:
    data = load_data(DataSettings(name="digits"), build_model("cifar:resnet20", num_classes=10))
    assert data.test is not None and data.preprocessing is not None
    images, labels = next(iter(data.test))
    with np.load(Path(preprocess.__file__).parent / "training" / "data" / "digits.npz") as arrays:
        pixels = arrays["images"][1500:1503]
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(np.round(one * (255 / 16)).astype(np.uint8)).save(path)
    # A level of a picture is 1/255, and the deviation about 0.38.
    assert np.abs(data.preprocessing.inputs(paths) - images[:3].numpy()).max() < 0.01
    assert [data.preprocessing.classes[label] for label in labels.tolist()] == [str(label) for label in labels.tolist()]


def test_published_weights_are_given_what_their_library_gives(tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights

    how = published_preprocessing("torchvision:resnet18", torch.nn.Identity())
    path = picture(tmp_path / "a.png", 300, 400)
    with Image.open(path) as image:
        wanted = ResNet18_Weights.DEFAULT.transforms()(image)
    assert how is not None and len(how.classes) == 1000
    assert np.abs(how.inputs([path])[0] - wanted.numpy()).max() < 1e-6
    timm = published_preprocessing("timm:resnet18", build_model("timm:resnet18"))
    assert timm is not None and timm.crop == (224, 224) and timm.interpolation == "bicubic"


def test_it_comes_back_from_json(tmp_path: Path) -> None:
    path = preprocess.beside(tmp_path / "model.onnx")
    assert path.name == "model.preprocess.json"
    path.write_text(json.dumps(HOW.to_dict()))
    assert preprocess.read(path) == HOW


@pytest.mark.parametrize(
    "change",
    [{"mode": "CMYK"}, {"resize": 0}, {"crop": [32]}, {"mean": [0.5]}, {"interpolation": "best"}, {"size": 3}],
)
def test_what_is_no_preprocessing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(SparsifyError, match="a file: does not describe a preprocessing"):
        from_dict({**HOW.to_dict(), **change}, "a file")


def test_a_file_that_is_no_image_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(SparsifyError, match=r"a\.png: cannot be read as an image"):
        HOW.inputs([tmp_path / "a.png"])
    with pytest.raises(SparsifyError, match=r"b\.png: no such image; did you mean .*a\.png"):
        HOW.inputs([tmp_path / "b.png"])


GREY = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)  # up to 65,472
RGBA = np.dstack([GREY // 257, 255 - GREY // 257, GREY % 256, GREY % 251]).astype(np.uint8)


def write_grey(path: Path) -> None:
    Image.fromarray(GREY).save(path)


def write_rgba(path: Path) -> None:
    Image.fromarray(RGBA).save(path)


def write_palette(path: Path) -> None:
    Image.fromarray(RGBA[..., :3]).convert("P").save(path, transparency=bytes(range(256)))


# How a file is written -> its pixels as RGB of 8 bits, by hand.
KINDS = {
    "16 bits": (write_grey, np.repeat(np.rint(GREY / 257)[..., None], 3, 2).astype(np.uint8)),
    "transparent": (write_rgba, RGBA[..., :3]),
    "palette": (write_palette, np.asarray(Image.fromarray(RGBA[..., :3]).convert("P").convert("RGB"))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_is_seen_as_it_is_in_training_and_outside(kind: str, tmp_path: Path) -> None:
    write, pixels = KINDS[kind]
    for part in ("train", "validation"):
        for of in ("cat", "dog"):
            (tmp_path / part / of).mkdir(parents=True)
            write(tmp_path / part / of / "0.png")
    settings = DataSettings(name=f"folder:{tmp_path}", image_size=32, workers=0)
    data = load_data(settings, build_model("cifar:resnet20", num_classes=2))
    assert data.test is not None and data.preprocessing is not None
    how = data.preprocessing
    expected = ((pixels.astype(np.float32) / 255 - np.float32(how.mean)) / np.float32(how.std)).transpose(2, 0, 1)
    assert np.ptp(expected) > 1
    [(images, _)] = list(data.test)
    outside = how.inputs([tmp_path / "validation" / "cat" / "0.png"])
    if how.resize == 32:
        assert np.abs(outside[0] - expected).max() < 1e-6
    assert np.abs(images.numpy() - outside[0]).max() < 1e-6


def test_pixels_of_an_unknown_range_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, values in {"a.tiff": GREY.astype(np.float32), "b.tiff": GREY.astype(np.int32)}.items():
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(SparsifyError, match=f"{name}: cannot be read as an image .its pixels are .* of 32 bits"):
            HOW.inputs([tmp_path / name])
