"""Lines and a table on what was converted, verified and pruned."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.models import FROM_PYTHON
from sparsify.pruning.report import sparsity_lines as sparsity_lines
from sparsify.training.recipe.yaml_lines import parse_yaml

from .show import Layer, byte_count, count, layer_table, percent, print_table, say

if TYPE_CHECKING:
    from torch import nn

    from sparsify.formats.file.inspection import FileSummary
    from sparsify.surgery.conversion.convert import ConversionReport
    from sparsify.training.recipe.read import Recipe
    from sparsify.training.run.train import TrainResult
    from sparsify.training.setup.prepare import Prepared
    from sparsify.weights import LoadReport


# The keys of a recipe's `data` that choose the images and their size; the others are about training.
_OF_THE_IMAGES = ("dir", "image_size", "train_split", "test_split", "label", "skip_bad", "num_classes")
# How a weight is masked (`ConversionReport.masked`) -> what that means.
_HOW = {
    "direct": "the layer calls a masked operation in place of the dense one",
    "substituted": "the module's own forward reads the masked weight",
    "computed": "the forward computes the weight that it uses, and the result is masked",
}


def conversion_lines(report: ConversionReport) -> list[str]:
    """Return the number of masked weights by kind and, with its reason, every weight that has no mask."""
    from sparsify.surgery.mask_state.masks import masked_weights

    entries = sum(weight.parameter.numel() for weight in masked_weights(report.model).values())
    lines = [f"masks: {count(len(report.masked), 'weight')}, {count(entries, 'number')}"]
    lines += [f"  {number:,} {how}: {_HOW[how]}" for how, number in Counter(report.masked.values()).items()]
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.skipped.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"  no mask on {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    lines += [f"  note: {note}" for note in report.notes]
    return lines


def masks_line(model: nn.Module, path: str | Path) -> str:
    """Return how many weights the masks from a file are on, and how much they remove."""
    from sparsify.surgery.mask_state.masks import get_masks, kept_of, masked_weights

    weights = masked_weights(model)
    kept, size = kept_of(weights.values())
    further = len(get_masks(model)) - len(weights)
    beside = f" and {count(further, 'further parameter')}" if further else ""
    share = f": {size - kept:,} of {count(size, 'number')} removed, {percent((size - kept) / size)}" if size else ""
    return f"masks: from {path}, on {count(len(weights), 'weight')}{beside}{share}"


def loaded_lines(loaded: LoadReport, source: str, model: nn.Module) -> list[str]:
    """Return what was loaded from a checkpoint into `model`, and what was not."""
    behind = f", behind '{loaded.prefix}'" if loaded.prefix else ""
    lines = [f"weights: {count(len(loaded.loaded), 'tensor')} from {source}{behind}"]
    if loaded.reinitialised:
        lines.append(f"  left as initialised, of another size there: {', '.join(loaded.reinitialised)}")
    if loaded.ignored:
        lines.append(f"  ignored there: {', '.join(loaded.ignored)}")
    return lines + [masks_line(model, source)] * (loaded.masks > 0)


def average_lines(recipe: Recipe) -> list[str]:
    """Return a line on the moving average that is tested and saved, if there is one."""
    ema = recipe.train.ema
    if ema is None:
        return []
    warmup = " after a warm-up" if ema.warmup else ""
    return [f"tested and saved: a moving average of the weights, decay {ema.decay:g}{warmup}"]


def start_lines(prepared: Prepared, folder: Path) -> list[str]:
    """Return the lines before the first step: model, data, processes, weights loaded, masks, verification, folder."""
    from sparsify.training.setup.split import processes_lines

    training, name = prepared.training, prepared.spec or type(prepared.training.model).__name__
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    lines = [f"{name}: {parameters:,} parameters, on {training.accelerator.device}", training.data.description]
    lines += processes_lines(prepared.recipe.data, training.model, training.ranks, training.settings)
    lines += average_lines(prepared.recipe)
    if prepared.loaded is not None:
        lines += loaded_lines(prepared.loaded, str(prepared.recipe.model.checkpoint), training.model)
        if prepared.loaded.masks and prepared.recipe.prune is not None and prepared.recipe.prune.schedule.cyclical:
            lines.append("  every cycle begins with all weights: those that are removed there come back as zeros")
    if prepared.recipe.model.masks is not None:
        lines.append(masks_line(training.model, prepared.recipe.model.masks))
    if prepared.conversion is not None:
        lines += conversion_lines(prepared.conversion)
    if prepared.verification is not None:
        lines += [str(prepared.verification), *(f"  note: {note}" for note in prepared.verification.notes)]
    per_epoch = training.steps_per_epoch
    epochs = -(-training.total_steps // per_epoch)
    return [*lines, f"{folder}: {count(training.total_steps, 'step')}, {count(epochs, 'epoch')} of {per_epoch:,}"]


def show_result(result: TrainResult) -> None:
    """Print the per-layer table, the results, the file's size next to the dense one, and what to do next."""
    from sparsify.formats.file.inspection import inspect_file
    from sparsify.training.records.result_text import result_lines

    saved = inspect_file(result.folder / "model.safetensors")
    if saved.masked_rows:
        print_table(layer_table(Layer(row.name, row.shape, row.kept) for row in saved.masked_rows))
    if result.report is not None:
        say(*sparsity_lines(result.report))
    say(*result_lines(result.metrics, result.shrunk), file_line(saved), "next:", *_next_lines(result, saved))


def _next_lines(result: TrainResult, saved: FileSummary) -> list[str]:
    """Return the next commands that are useful for this run."""
    folder, known = shlex.quote(str(result.folder)), saved.metadata.extra.get("preprocess")
    recipe = parse_yaml(saved.metadata.recipe or "", saved.path).value
    lines = [f"sparsify bench {folder}"]
    if result.report is None and not saved.masked_entries:
        given = recipe["data"]["name"].startswith(FROM_PYTHON) or recipe.get("plugin") is not None
        known_by_name = saved.metadata.spec is not None and not given
        lines = [_prune_line(str(saved.metadata.spec), recipe, result.folder)] if known_by_name else []
    units = result.report is not None and result.report.kind == "units" and result.shrunk is None
    lines.append(f"sparsify export {folder} --out model.onnx{' --shrink' if units else ''}")
    if known is not None:
        lines.append(f"sparsify predict {folder} IMAGE...")
    if "test_accuracy" not in result.metrics:
        lines.append(f"sparsify eval {folder} --data NAME")
    return [f"  {line}" for line in lines]


def _prune_line(spec: str, recipe: Mapping[str, Any], folder: Path) -> str:
    """Return the command that prunes the model of a dense run, on the images and the image size of its training."""
    from sparsify.training.recipe.settings import DataSettings, ModelSettings

    words = ["--model", spec, "--data", recipe["data"]["name"], "--set", f"model.checkpoint={folder}"]
    for section, kind, keys in (("model", ModelSettings, ("arguments",)), ("data", DataSettings, _OF_THE_IMAGES)):
        for key in keys:
            default = kind.model_fields[key].get_default(call_default_factory=True)
            value = recipe[section].get(key, default)
            if value != default:
                words += ["--set", f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(["sparsify", "train", "recipes/gradual.yaml", *words, "--out", f"{folder}-pruned"])


def file_line(saved: FileSummary) -> str:
    """Return the size of a file next to that of its dense model before a shrink."""
    return _size_line(saved.path, saved.sparsity, saved.bytes_file, saved.bytes_original)


def written_line(path: str, size: int, dense: int, model: nn.Module) -> str:
    """Return the same for any export of `model`: `size` bytes, `dense` bytes of the dense model before a shrink."""
    from sparsify.surgery.mask_state.masks import kept_of, masked_weights

    kept, total = kept_of(masked_weights(model).values())
    return _size_line(path, (total - kept) / total if total else None, size, dense)


def _size_line(path: str, sparsity: float | None, size: int, dense: int) -> str:
    share = "" if sparsity is None else f"{percent(sparsity)} of the masked weights removed, "
    return f"{path}: {share}{byte_count(size)}, {percent(size / dense)} of the dense {byte_count(dense)}"
