"""Start from a checkpoint of any kind: load its weights, masks and cuts into a freshly built model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from .errors import SparsifyError
from .formats.file.container import read_header
from .formats.file.cuts_text import cuts_from
from .formats.file.metadata import Metadata
from .formats.io.locate import model_file
from .formats.model.load import ensure_masked
from .formats.model.read import read_file
from .surgery.mask_state.masks import set_masks
from .surgery.shrink.cuts import Cuts, apply_cuts
from .weights import LoadReport, drop_prefix, load_state, read_weights, split_masks


@dataclass(frozen=True)
class Start:
    """The content of a checkpoint: a state dict, masks by parameter name, and the cuts of its model.

    `also` names the masked extra parameters (`mask_also`). `metadata` is that of a file written by sparsify.
    """

    path: str
    state: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    cuts: Cuts | None = None
    source: str = ""
    ignored: tuple[str, ...] = ()
    metadata: Metadata = field(default_factory=Metadata)

    def into(self, model: nn.Module) -> LoadReport:
        """Load the content into a plain, freshly built `model`, in place, and return a report.

        A head for another number of classes keeps its own values and gets no mask. Raises SparsifyError with the keys
        if the weights do not fit; the model may have been cut then.
        """
        if self.cuts is not None:
            try:
                apply_cuts(model, self.cuts)
            except SparsifyError as error:
                raise SparsifyError(f"{self.path}: the model cannot be cut as the file's was: {error}") from error
        state, prefix = drop_prefix(self.state, model.state_dict())
        masks = {name.removeprefix(prefix): mask for name, mask in self.masks.items()}
        report = load_state(model, state, source=self.path)
        fitting = {name: mask for name, mask in masks.items() if name not in report.reinitialised}
        if fitting:
            also = [name.removeprefix(prefix) for name in self.also]
            weights = [name for name in fitting if name not in also]
            ensure_masked(self.path, model, weights, [name for name in also if name in fitting])
            set_masks(model, fitting)
        return replace(report, ignored=list(self.ignored), source=self.source, prefix=prefix, masks=len(fitting))


def read_start(source: str | os.PathLike[str]) -> Start:
    """Return the content of the checkpoint `source`, read without executing code from it.

    `source` is a file (sparse, shrunk, safetensors, or a torch file with tensors only), the folder of a run or of the
    hub, or "hf:OWNER/NAME". Masks of torch.nn.utils.prune (`weight_orig`, `weight_mask`) are read as masks. Raises
    SparsifyError, one line, for anything else.
    """
    path = model_file(source)
    if path.suffix == ".safetensors" and os.path.isfile(path) and os.access(path, os.R_OK):
        text = read_header(path).metadata
        ours = "header_crc32" in text and not text.keys() & {"sparsify_checkpoint", "masks"}
        if ours or text.get("format") == "sparsify":
            return _read_ours(os.fspath(path))
    state, part, ignored = read_weights(path)
    state, masks = split_masks(state)
    also = tuple(name for name in masks if state[name].dim() < 2)
    return Start(os.fspath(path), state, masks, also, source=part, ignored=tuple(ignored))


def _read_ours(path: str) -> Start:
    (state, masks, metadata), contents = read_file(path)
    masks |= {alias: masks[name] for alias, name in contents.aliases.items() if name in masks}
    also = tuple(name for name, entry in contents.masked.items() if entry.also)
    cuts = cuts_from(contents.cuts) if contents.cuts else None
    return Start(path, state, masks, also, cuts, metadata=metadata)
