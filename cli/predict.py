"""sparsify predict"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsify.errors import SparsifyError, one_line

from .paths import saved_model
from .view.show import percent, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparsify.preprocess import Preprocessing

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_BATCH = 64


@click.command("predict")
@click.argument("source", metavar="RUN|FILE|hf:OWNER/NAME")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown of each image.")
@click.option(
    "--preprocess",
    metavar="FILE",
    help="Preprocessing of the images.  [default: that of the file, or NAME.preprocess.json beside it]",
)
@click.option(
    "--engine", is_flag=True, help="Run a sparse file on the sparse engine; an engine file always runs there."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: for each image its file, classes and probabilities.")
def command(
    source: str, images: tuple[str, ...], top: int, preprocess: str | None, engine: bool, as_json: bool
) -> None:
    """Classify image files: print the most probable classes of each.

    PyTorch runs the model of a run or a sparse file, the sparse engine that of an engine file, and ONNX Runtime an ONNX
    file. Images are resized, cropped and normalised like the model's test images.
    """
    path = saved_model(source)
    onnx = path.suffix.lower() == ".onnx"
    if onnx and engine:
        raise SparsifyError("predict: --engine runs sparse files; an ONNX file is run by ONNX Runtime")
    run, stated = _onnx(path) if onnx else _sparse(path, engine)
    how = _preprocessing(path, preprocess, stated)
    found = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        found += [_best(image, row, how, top) for image, row in zip(batch, _scores(path, run, how, batch), strict=True)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        named = (f"{best['class']} {percent(best['probability'])}" for best in one["classes"])
        say(f"{one['image']}: {', '.join(named)}")


def _best(image: str, scores: NDArray[np.float32], how: Preprocessing, top: int) -> dict[str, Any]:
    """Return the classes of an image by decreasing probability (softmax of its scores)."""
    import numpy as np

    exponents = np.exp(scores.astype(np.float64) - scores.max())
    shares = exponents / exponents.sum()
    order = np.argsort(-shares, kind="stable")[:top]
    names = how.classes if len(how.classes) == len(scores) else [f"class {index}" for index in range(len(scores))]
    return {"image": image, "classes": [{"class": names[i], "probability": float(shares[i])} for i in order]}


def _scores(path: Path, run: Run, how: Preprocessing, images: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """Yield the scores of each image, a row for each."""
    inputs = how.inputs(images)
    try:
        scores = run(inputs)
    except SparsifyError:
        raise
    except Exception as error:  # a model may be anything, and ONNX Runtime has errors of its own
        size = "x".join(map(str, inputs.shape[1:]))
        reason = one_line(error, 200)
        text = f"{path}: the model does not take images of {size}, as they are preprocessed: {reason}"
        raise SparsifyError(text) from error
    if scores.ndim != 2 or len(scores) != len(images):
        raise SparsifyError(f"predict: the model returned {scores.shape}, not one score per image and class")
    yield from scores


def _preprocessing(path: Path, given: str | None, stated: Any) -> Preprocessing:
    from sparsify.preprocess import beside, from_dict, read

    if given is not None:
        return read(given)
    if stated is not None:
        return from_dict(stated, str(path))
    if os.path.isfile(beside(path)):
        return read(beside(path))
    raise SparsifyError(
        f"{path}: does not say how an image becomes its input (its data came from Python, or an older sparsify wrote "
        "it); give that as --preprocess FILE (docs/export.md)"
    )


def _sparse(path: Path, on_engine: bool) -> tuple[Run, Any]:
    import torch

    import sparsify
    from sparsify.formats.file.inspection import inspect_file
    from sparsify.preprocess import KEY
    from sparsify.training.loop.evaluate import logits_of

    about = inspect_file(path).metadata
    compiled = on_engine or bool(about.engine)
    model: Any = sparsify.compile(path) if compiled else sparsify.load(path, fold=True).eval()

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = logits_of(model(torch.from_numpy(inputs))).float().numpy()
        return found

    return run, about.extra.get(KEY)


def _onnx(path: Path) -> tuple[Run, Any]:
    from importlib.util import find_spec

    if find_spec("onnxruntime") is None:
        raise SparsifyError(f"{path}: needs ONNX Runtime: pip install onnxruntime")
    import onnxruntime

    from sparsify.preprocess import KEY

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has errors of its own for each kind of damage
        raise SparsifyError(f"{path}: ONNX Runtime cannot read it: {one_line(error, 200)}") from None
    found = session.get_inputs()
    if len(found) != 1 or len(found[0].shape) != 4:
        shapes = ", ".join(f"{one.name} {list(one.shape)}" for one in found) or "nothing"
        raise SparsifyError(f"{path}: takes {shapes}; predict gives one input, a batch of images (4 dimensions)")
    [given] = found
    size = given.shape[0] if isinstance(given.shape[0], int) else None
    try:
        extra = json.loads(session.get_modelmeta().custom_metadata_map.get("sparsify.extra", "{}"))
    except ValueError as error:
        raise SparsifyError(f"{path}: its metadata sparsify.extra are not JSON: {error}") from None
    extra = extra if isinstance(extra, dict) else {}

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first output for all inputs, in batches of the exported size."""
        import numpy as np

        step = size or len(inputs)
        parts = []
        for start in range(0, len(inputs), step):
            part = inputs[start : start + step]
            full = np.concatenate([part, np.zeros((step - len(part), *part.shape[1:]), part.dtype)])
            parts.append(session.run(None, {given.name: full})[0][: len(part)])
        return np.concatenate(parts)

    return run, extra.get(KEY)
