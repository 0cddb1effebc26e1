"""Loading a file into the model that it names, or into a given one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import NoneType
from typing import Any

from torch import nn

from ...arguments import PATH, takes
from ...errors import SparsifyError
from ...surgery.conversion.convert import convert
from ...surgery.conversion.fold import fold as fold_model
from ...surgery.conversion.mask_extra import mask_also
from ...surgery.mask_state.masks import all_masked_parameters
from ...surgery.mask_state.sharding import refuse_sharded
from ...surgery.masking.masked_classes import detach_masks
from ...surgery.shrink.cuts import Cuts, cut, cuts_of, every_tensor
from ...surgery.sizes.attributes import new_attributes
from ...surgery.unwrap import unwrap
from ..file.cuts_text import cuts_from
from ..file.mask_file import are_masks_alone
from ..file.metadata import Contents
from ..io.locate import model_file
from .build import build_named
from .model_state import adopt_dtypes, check_names, put
from .read import FileState, read_file


@takes(path=PATH, model=(nn.Module, NoneType), fold=bool)
def load(path: str | os.PathLike[str], model: nn.Module | None = None, *, fold: bool = False) -> nn.Module:
    """Return the model with the tensors and masks of the file at `path`.

    - `path`: a file, a folder with a `model.safetensors` (a run's, or one in the layout of the hub) or "hf:OWNER/NAME",
      with or without "@REVISION", a repository on the Hugging Face hub. A file without masks, of this library or
      another, is a plain state dict.
    - `model`: loaded in place; keeps its dtypes and mode. A plain model is converted first, so that exactly the file's
      masked parameters carry masks; a converted one keeps its masks (all ones where the file has none). Without `model`
      the file must name its model, which is built and returned in eval mode.
    - `fold`: return a plain model with the masks multiplied in: `model` itself if it is plain, a new one if it carries
      masks or computes its weights from the stored ones.

    Names and shapes of all tensors must match. For the file of a shrunk model, a model that is built, or a plain one of
    the original size, is shrunk first, in place; a model that already has the file's sizes is only loaded.
    Raises SparsifyError, one line, for a file that is missing, truncated, altered or does not fit; the model's tensors
    are then unchanged.
    """
    if model is not None:
        refuse_sharded(unwrap(model), "load", "load the file before it is cut")
    path = model_file(path)
    found, contents = read_file(path)
    if are_masks_alone(contents):
        raise SparsifyError(f"{path}: holds masks alone, without weights: put them on a model with sparsify.load_masks")
    target = model
    if target is None:
        target = build_named(path, contents)
    inner = unwrap(target)
    undo = _cut(path, inner, contents)
    try:
        check_names(os.fspath(path), inner, found.state)
        if model is None and found.metadata.cast is None:
            adopt_dtypes(inner, found.state)
        _fill(os.fspath(path), inner, found, contents, fold=fold)
    except BaseException:
        undo()
        raise
    if model is None:
        target.eval()
    if fold and next(all_masked_parameters(inner), None) is not None:
        return fold_model(inner)
    return target


def _fill(where: str, model: nn.Module, found: FileState, contents: Contents, *, fold: bool) -> None:
    """Copy a file's tensors into a model of the same names; a plain model gets masks too, unless it is to be folded."""
    masks = found.masks | {alias: found.masks[name] for alias, name in contents.aliases.items() if name in found.masks}
    if fold and not any(entry.encoding == "raw" for entry in contents.masked.values()):
        masks = {}  # a plain model only needs the effective weights
    if masks:
        further = [name for name, entry in contents.masked.items() if entry.also]
        aliases = {alias for alias, name in contents.aliases.items() if name in further}
        ensure_masked(where, model, masks.keys() - aliases - {*further}, further)
    put(model, found.state, masks)


def _cut(path: str | os.PathLike[str], model: nn.Module, contents: Contents) -> Callable[[], None]:
    """Cut a model like the file's, unless its tensors already have the file's sizes; return the undo function."""
    if not contents.cuts:
        return lambda: None
    cuts, before = cuts_from(contents.cuts), cuts_of(model)
    sizes = {name: tuple(tensor.shape) for name, tensor in every_tensor(model).items()}
    originals = {name: contents.cuts.original(name, shape) for name, shape in contents.shapes.items()}
    fresh = all(sizes.get(name) == shape for name, shape in originals.items() if shape is not None)
    if not fresh or before == cuts or any(name in sizes for name in cuts.added):
        # Cut before: the file's cuts are those. Or of other sizes: `check_names` will report them.
        model.__dict__["sparsify_cuts"] = cuts
        return partial(_remember, model, before)
    try:
        _check_smaller(model, cuts)
        undo = cut(model, cuts)
    except SparsifyError as error:
        raise SparsifyError(f"{os.fspath(path)}: the model cannot be cut as the file's was: {error}") from error

    def back() -> None:
        """Undo the cut; the model was plain, so masks put on since are removed first."""
        for module in model.modules():
            detach_masks(module)
        undo()

    return back


def _check_smaller(model: nn.Module, cuts: Cuts) -> None:
    """Raise SparsifyError if the cuts would make an attribute larger."""
    for owner, name, value in new_attributes(model, cuts.attributes):
        if _largest(value) > _largest(getattr(owner, name)):
            raise SparsifyError(f"{type(owner).__name__}.{name} would become larger")


def _largest(value: Any) -> int:
    if isinstance(value, dict | list | tuple):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, int) else 0


def _remember(model: nn.Module, cuts: Cuts | None) -> None:
    model.__dict__["sparsify_cuts"] = cuts
    if cuts is None:
        del model.__dict__["sparsify_cuts"]


def ensure_masked(where: str, model: nn.Module, weights: Collection[str], further: Collection[str]) -> None:
    """Put masks on `weights` and `further` parameters; a plain model is converted so that only these carry masks.

    Raises SparsifyError, prefixed by `where`, if one of them cannot carry a mask.
    """
    skipped: Mapping[str, str] = {}
    if next(all_masked_parameters(model), None) is None:
        skipped = convert(model, ignore=[name for name in _weights(model) if name not in weights]).skipped
    try:
        mask_also(model, further)
    except SparsifyError as error:
        raise SparsifyError(f"{where}: {error}") from error
    live = {weight.name for weight in all_masked_parameters(model)}
    wanted = [*weights, *further]
    lost = [f"{name} ({skipped[name]})" if name in skipped else name for name in wanted if name not in live]
    if lost:
        raise SparsifyError(f"{where}: the model carries no mask on {', '.join(lost)}, the file does")


def _weights(model: nn.Module) -> list[str]:
    """Return the names of the parameters that could carry a mask."""
    parameters = model.named_parameters(remove_duplicate=False)
    return [name for name, value in parameters if value.is_floating_point() and value.dim() > 1]
