"""Accuracy and loss of a model on a test set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from ...datasets import may_be_fetched
from ...errors import RunWarning, SparsifyError, listed
from ...export.save import inspect_file, load
from ...formats.file.metadata import Metadata
from ...preprocess import class_names
from ...preserve import keep_modes
from ...processes.launch import read_launch
from ...processes.ranks import ALONE, Ranks
from ..batches.shares import counts
from ..batches.types import Data
from ..data.bad_images import dead_workers
from ..data.datasets import load_data
from ..recipe.lookups import check_data_name, check_device
from ..recipe.settings import DataSettings, TrainSettings
from ..recipe.yaml_lines import parse_yaml
from .optimizer import make_accelerator


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` (top-1, in [0, 1]) and `loss` (mean cross-entropy, nats) over `count` examples."""

    accuracy: float
    loss: float
    count: int


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    num_classes: int | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ranks: Ranks = ALONE,
    sharded: bool = False,
) -> Evaluation:
    """Return the top-1 accuracy and mean loss of `model` in eval mode over `batches` of (inputs, class indices).

    Several processes, each with its share of the batches, all return the result over all of them. With
    `sharded`, all of them take part in every forward. The model must be on `device`; its train/eval mode is kept.
    Raises SparsifyError if there is no example, or if the model has fewer than `num_classes` classes.
    """
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device="cpu" if torch.device(device).type == "mps" else device)
    count = 0
    with torch.no_grad(), keep_modes(model):
        model.eval()
        for batch in batches:
            counted, _ = counts(batch)
            if not (counted or sharded):  # another process counts these images
                continue
            inputs, classes = (part.to(device) for part in batch)
            with autocast():
                scores = logits_of(model(inputs), num_classes).float()
            if not counted:
                continue
            correct += (scores.argmax(1) == classes).sum()
            loss += F.cross_entropy(scores, classes, reduction="sum").to(loss)
            count += len(classes)
    if ranks.size > 1:
        correct, loss, count = ranks.sum(correct), ranks.sum(loss), sum(ranks.gather(count))
    if count == 0:
        raise SparsifyError("the test set is empty")
    return Evaluation(correct.item() / count, loss.item() / count, count)


def logits_of(output: object, num_classes: int | None = None) -> Tensor:
    """Return the class scores (batch x classes) in what a model returned: a tensor, or an object with `.logits`.

    Raises SparsifyError if there are none, or fewer than `num_classes` to an example.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SparsifyError(f"the model returned {got}, not one score per example and class: not a classifier")
    if num_classes is not None and logits.shape[1] < num_classes:
        raise SparsifyError(f"the model has {logits.shape[1]} outputs, the data set {num_classes} classes")
    return logits


def evaluate_file(
    path: str | PathLike[str],
    *,
    model: nn.Module | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
) -> tuple[Evaluation, Data]:
    """Return accuracy and loss of the model saved at `path` on the test images of a data set, and that data set.

    The data set is `data`, by default the one the model was trained on; `model` is needed where the file does not name
    it. Raises SparsifyError for a file or a data set that is missing or does not fit.
    """
    check_device(device)
    if read_launch().size > 1:
        raise SparsifyError(f"eval: one process measures a file, {read_launch().size} were started; start it alone")
    about = inspect_file(path).metadata
    settings = _data_settings(about, path, data, data_dir)
    accelerator = make_accelerator(TrainSettings(device=device))
    plain = load(path, model, fold=True).to(accelerator.device)
    found = load_data(settings, plain, device=accelerator.device)
    assert found.test is not None, "every set that is known by name has test images"
    with dead_workers():
        result = evaluate(plain, found.test, device=accelerator.device, num_classes=found.num_classes)
    _warn_of_other_classes(about, path, found)
    return result, found


def _warn_of_other_classes(about: Metadata, path: str | PathLike[str], data: Data) -> None:
    """Warn if a file and a data set name the same classes otherwise, or in another order: indices were compared."""
    in_data = () if data.preprocessing is None else data.preprocessing.classes
    pairs = enumerate(zip(class_names(about.extra), in_data, strict=False))
    others = [f"{index} is '{name}', and '{theirs}' in the data" for index, (name, theirs) in pairs if name != theirs]
    if others:
        text = f"{path}: its classes are not those of {data.name}, and the accuracy is of their numbers: "
        warnings.warn(text + listed(others, 1), RunWarning, stacklevel=3)


def _data_settings(about: Metadata, path: str | PathLike[str], name: str | None, folder: str | None) -> DataSettings:
    trained = None
    if about.recipe:
        try:
            trained = DataSettings.model_validate(parse_yaml(about.recipe, str(path))[0]["data"])
        except (KeyError, TypeError, ValidationError):
            raise SparsifyError(f"{path}: the recipe in the file has no valid section 'data'") from None
    if name is None and trained is not None and may_be_fetched(trained.name):
        raise SparsifyError(f"{path}: was trained on '{trained.name}', which may be fetched: name it with --data")
    if name is None and trained is None:
        raise SparsifyError(f"{path}: the file does not name its data set; give one with --data")
    if trained is None or name not in (None, trained.name):
        # Another data set has its own augmentation, but the model still sees images of its training size.
        shape = about.extra.get("input_shape")
        size = shape[-1] if isinstance(shape, list) and shape and type(shape[-1]) is int else None
        trained = DataSettings(name=name or "", image_size=size if size is None or 0 < size <= 16_384 else None)
    settings = trained if folder is None else trained.model_copy(update={"dir": folder})
    check_data_name(settings, where="--data")
    return settings
