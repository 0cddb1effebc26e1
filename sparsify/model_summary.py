"""summary(): sparsity by layer, parameters, multiply-adds and file size of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from .arguments import takes
from .formats.file.container import DTYPES, Part
from .formats.model.model_state import collect
from .formats.model.stored_tensors import dense_parts, encodings_of, sparse_parts
from .layer_summary import LayerSummary
from .quantities import byte_count, percent
from .surgery.channels.analyse import analyse
from .surgery.mask_state.masks import kept_of, masked_parameters, masked_weights
from .surgery.unwrap import unwrap
from .tables import text_table


@dataclass(frozen=True)
class Summary:
    """Sparsity and cost of a model: per masked weight in `layers`, and in total.

    `parameters` counts the entries of all parameters, `kept_parameters` those that no mask removes. `multiply_adds` is
    the cost of one forward pass on the example, None without an example; `kept_multiply_adds` scales the cost of each
    masked module by the kept share of its weights. `uncounted` names the operations that neither includes.
    `dense_bytes` is the size of the dense tensors, `file_bytes` that of the tensors in a sparse file without header.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    kept_parameters: int
    dense_bytes: int
    file_bytes: int
    multiply_adds: int | None = None
    kept_multiply_adds: int | None = None
    uncounted: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """The removed fraction of the masked weights' entries."""
        size = sum(prod(layer.shape) for layer in self.layers)
        return 1 - sum(layer.kept for layer in self.layers) / size if size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the sparsities as JSON-serialisable values."""
        layers = [asdict(one) | {"shape": list(one.shape), "sparsity": one.sparsity} for one in self.layers]
        return asdict(self) | {"layers": layers, "uncounted": list(self.uncounted), "sparsity": self.sparsity}

    def __str__(self) -> str:
        counted = self.multiply_adds is not None
        headings = ("layer", "shape", "kept", "sparsity", *(("multiply-adds", "of them kept") if counted else ()))
        rows = []
        for one in self.layers:
            costs = (f"{one.multiply_adds or 0:,}", f"{one.kept_multiply_adds or 0:,}") if counted else ()
            rows.append((one.name, "x".join(map(str, one.shape)), f"{one.kept:,}", percent(one.sparsity), *costs))
        lines = text_table(headings, rows) if rows else ["no weight carries a mask"]
        lines.append(f"sparsity {percent(self.sparsity)} of the masked weights")
        lines.append(_of("parameters", self.kept_parameters, self.parameters))
        if self.multiply_adds is not None and self.kept_multiply_adds is not None:
            lines.append(_of("multiply-adds", self.kept_multiply_adds, self.multiply_adds))
            lines += [f"  not counted: multiply-adds of {operation}" for operation in self.uncounted]
        share = percent(self.file_bytes / self.dense_bytes) if self.dense_bytes else "-"
        lines.append(
            f"sparse file: about {byte_count(self.file_bytes)}, {share} of the dense {byte_count(self.dense_bytes)}"
        )
        return "\n".join(lines)


def _of(what: str, kept: int, size: int) -> str:
    return f"{what}: {kept:,} of {size:,} kept" + (f", {percent(kept / size)}" if size else "")


@takes(model=nn.Module)
def summary(model: nn.Module, example_input: Any = None) -> Summary:
    """Return a `Summary` of `model`: sparsity by layer and in total, and the size of its file; print it for a table.

    With `example_input`, as in `analyse`, the model runs once to count multiply-adds, dense and kept. `model` is not
    changed. Raises SparsifyError for a state that a sparse file cannot hold, and whatever the forward raises.
    """
    model = unwrap(model)
    state, weights = collect(model), masked_weights(model)
    costs, uncounted = (None, ()) if example_input is None else _costs(model, example_input)
    kept = {name: int(weight.mask.count_nonzero()) for name, weight in weights.items()}
    sizes, left = Counter[str](), Counter[str]()  # by module
    module_of = {name: name.rpartition(".")[0] for name in weights}
    for name, module in module_of.items():
        sizes[module] += weights[name].mask.numel()
        left[module] += kept[name]
    layers = []
    for name, weight in weights.items():
        module, shape = module_of[name], tuple(weight.mask.shape)
        if costs is None:
            layers.append(LayerSummary(name, shape, kept[name]))
            continue
        own = costs.get(module, 0) * prod(shape) // max(1, sizes[module])
        layers.append(LayerSummary(name, shape, kept[name], own, own * kept[name] // max(1, prod(shape))))
    all_left, masked = kept_of(masked_parameters(model).values())
    entries = sum(parameter.numel() for parameter in model.parameters())
    return Summary(
        layers=tuple(layers),
        parameters=entries,
        kept_parameters=entries - masked + all_left,
        dense_bytes=_bytes(dense_parts(state, None)),
        file_bytes=_bytes(sparse_parts(state, encodings_of(state, None), None)),
        multiply_adds=None if costs is None else sum(costs.values()),
        kept_multiply_adds=None
        if costs is None
        else sum(c * left[m] // max(1, sizes[m]) if m in sizes else c for m, c in costs.items()),
        uncounted=uncounted,
    )


def _costs(model: nn.Module, example_input: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the multiply-adds by module path, and the operations that are not counted."""
    channels, costs = analyse(model, example_input), Counter[str]()
    for operation in channels.operations:
        costs[operation.name] += operation.multiply_adds
    return costs, channels.uncounted


def _bytes(parts: Iterable[Part]) -> int:
    return sum(DTYPES[part.dtype] * prod(part.shape) for part in parts)
