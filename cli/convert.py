"""sparsify convert"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sparsify.errors import RunError, SparsifyError
from sparsify.export.registry import FORMATS, check_place
from sparsify.models import check_model_name
from sparsify.pruning.settings.sections import CRITERION_ROWS

from .paths import saved_model
from .start_model import build, input_shape
from .view.report import conversion_lines, file_line, masks_line, sparsity_lines
from .view.show import say
from .view.shrinking import check_options, example_inputs, shrunk

# Those that need no data.
_FREE = [name for name, row in CRITERION_ROWS.items() if not row.needs_data]
_CRITERIA = f"{', '.join(_FREE[:-1])} or {_FREE[-1]}."

if TYPE_CHECKING:
    from torch import nn

    from sparsify.pruning.settings.prune import Pruning
    from sparsify.surgery.channels.analyse import Dead


@click.command("convert")
@click.argument("checkpoint", required=False)
@click.option(
    "--model", metavar="SPEC", required=True, help="timm:NAME, torchvision:NAME, cifar:NAME or transformers:NAME."
)
@click.option("--sparsity", help="Fraction removed, as 0.9 or 1/3.  [default: 0, or what 2:4 comes to]")
@click.option("--amount", type=int, help="Instead of --sparsity: how many are removed in each group of the scope.")
@click.option("--scope", help="global, layer, filter or erk.  [default: global; layer for unit and 2:4]")
@click.option("--criterion", default="magnitude", show_default=True, help=_CRITERIA)
@click.option(
    "--granularity",
    default="weight",
    show_default=True,
    help="weight, unit (whole channels, tied ones), 2:4 (or other n:m, along the inputs) or 4x1 (or other blocks).",
)
@click.option(
    "--aggregate",
    help="With --granularity unit: a unit's score is the mean, sum, max or l2 of its entries.  [default: mean]",
)
@click.option("--masks", metavar="RUN|FILE", help="Use the masks of this run or file instead of pruning.")
@click.option("--shrink", is_flag=True, help="Remove channels that cannot influence the output, and verify it.")
@click.option("--round-to", type=click.IntRange(min=1), help="With --shrink: keep channel counts at multiples of this.")
@click.option(
    "--dead",
    type=click.Choice(["masks", "zeros"]),
    help="With --shrink: remove what masks make dead (masks), or also what zero weights do (zeros).  [default: masks]",
)
@click.option(
    "--ignore",
    multiple=True,
    help="A weight or module left dense: name, glob, re:EXPRESSION, class (Linear), first or last; repeatable.",
)
@click.option("--only", multiple=True, help="Prune only this weight or module, named as for --ignore; repeatable.")
@click.option(
    "--num-classes",
    type=click.IntRange(min=1),
    help="Size of the model's head.  [default: the checkpoint's or the model's own]",
)
@click.option("--pretrained", is_flag=True, help="Start from the published weights of the model's library.")
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    help="Image size for the verification, in pixels.  [default: the model's own]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of random scores and of fresh weights.")
@click.option("--out", metavar="FILE", required=True, help="File to write the masked model to.")
def command(
    checkpoint: str | None,
    model: str,
    sparsity: str | None,
    amount: int | None,
    scope: str | None,
    criterion: str,
    granularity: str,
    aggregate: str | None,
    masks: str | None,
    shrink: bool,
    round_to: int | None,
    dead: Dead | None,
    ignore: tuple[str, ...],
    only: tuple[str, ...],
    num_classes: int | None,
    pretrained: bool,
    image_size: int | None,
    seed: int,
    out: str,
) -> None:
    """Put masks on a model, prune it in one shot (or use given masks) and save it.

    The weights come from CHECKPOINT (safetensors, or a torch file of tensors: plain, wrapped or EMA; also a folder with
    model.safetensors, or hf:OWNER/NAME), from the model's library with --pretrained, or are fresh. The conversion is
    verified before anything is written.

    The output counts the weights by how they are masked: direct, the layer calls a masked operation instead of the
    dense one; substituted, the module's own forward reads the masked weight; computed, the forward computes the weight
    that it uses (weight standardisation), and the result is masked.
    """
    check_model_name(model, where="--model")
    if checkpoint is not None and pretrained:
        raise SparsifyError("convert: either a CHECKPOINT or --pretrained, not both")
    pruning = _pruning(sparsity, amount, scope, criterion, granularity, ignore, only, aggregate)
    check_options("convert", shrink, round_to=round_to, dead=dead)
    if masks is not None:
        _refuse_beside_masks()
    check_place(FORMATS["sparse"], out)
    checkpoint = None if checkpoint is None else str(saved_model(checkpoint))
    how = pruning if masks is None else saved_model(masks)
    masked, about, input_shape = _convert(checkpoint, model, how, num_classes, pretrained, image_size, seed)
    if shrink:
        masked = shrunk(masked, input_shape, round_to, dead or "masks")
    _write(masked, model, about, seed, out)


def _pruning(
    sparsity: str | None,
    amount: int | None,
    scope: str | None,
    criterion: str,
    granularity: str,
    ignore: Sequence[str],
    only: Sequence[str],
    aggregate: str | None,
) -> Pruning:
    """Return the pruning settings of the options."""
    from sparsify.pruning.settings.prune import parse_pruning

    # Units of different layers are hard to compare by their weights: one layer would lose nearly all.
    scope = scope or ("layer" if granularity == "unit" or ":" in granularity else "global")
    settings: dict[str, Any] = {"scope": scope, "criterion": criterion, "granularity": granularity}
    if aggregate is not None:
        settings["granularity"] = {"name": granularity, "aggregate": aggregate}
    if amount is not None:
        settings["amount"] = amount
    if sparsity is not None or (amount is None and ":" not in granularity):
        settings["sparsity"] = 0.0 if sparsity is None else sparsity
    try:
        pruning = parse_pruning(
            {**settings, "ignore": list(ignore), "only": list(only) or None, "schedule": "one_shot"}
        )
    except SparsifyError as error:
        raise SparsifyError(re.sub(r"^pruning\.(\w+)[.\w]*:", r"--\1:", str(error))) from None
    if CRITERION_ROWS[pruning.criterion.name].needs_data:
        raise SparsifyError(f"convert: {criterion} needs data; train with recipes/snip.yaml and this criterion instead")
    return pruning


def _refuse_beside_masks() -> None:
    """Raise SparsifyError if --masks was combined with an option that chooses masks."""
    context = click.get_current_context()
    for name in ("sparsity", "amount", "scope", "criterion", "granularity", "aggregate", "ignore", "only"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise SparsifyError(f"convert: --masks already says which weights to keep; leave out --{name}")


def _convert(
    checkpoint: str | None,
    spec: str,
    how: Pruning | Path,
    num_classes: int | None,
    pretrained: bool,
    image_size: int | None,
    seed: int,
) -> tuple[nn.Module, dict[str, Any], tuple[int, ...]]:
    """Return the masked model, the metadata of its file ("arguments", "extra") and the shape of its input."""
    import torch

    import sparsify

    torch.manual_seed(seed)
    model, arguments, how_images = build(checkpoint, spec, num_classes, pretrained)
    model.eval()
    if isinstance(how, Path):
        sparsify.load_masks(how, model)
        say(masks_line(model, how))
    else:
        say(*conversion_lines(sparsify.convert(model, ignore=how.ignore, only=how.only or ())))
    shape = input_shape(model, spec, image_size)
    verification = sparsify.verify(model, example_inputs(model, 2, shape))
    say(str(verification), *verification.notes)
    if not verification.ok:
        raise RunError("convert: the verification found a fault (above); nothing was written")
    if not isinstance(how, Path):
        generator = torch.Generator().manual_seed(seed)
        pruner = sparsify.Pruner(
            model, how, total_steps=1, generator=generator, example_input=example_inputs(model, 1, shape)
        )
        if how.target or how.amount is not None:
            pruner.check_present(where="--sparsity")
            pruner.start()
        say(*sparsity_lines(pruner.report()))
    extra = {**({"input_shape": list(shape)} if shape else {}), **({"preprocess": how_images} if how_images else {})}
    return model, {"arguments": arguments, "extra": extra}, shape


def _write(model: nn.Module, spec: str, about: dict[str, Any], seed: int, out: str) -> None:
    import sparsify
    from sparsify.formats.file.inspection import inspect_file

    sparsify.save(model, out, spec=spec, seeds={"convert": seed}, **about)
    say(file_line(inspect_file(out)), "next:")
    if "input_shape" in about["extra"]:  # what `train` has data for
        words = ["train", "recipes/dense.yaml", "--model", spec, "--data", "NAME", "--set", f"model.checkpoint={out}"]
        say(f"  sparsify {shlex.join(words)}")
    say(f"  sparsify bench {shlex.quote(out)}")
