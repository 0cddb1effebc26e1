"""sparsify diff"""

from __future__ import annotations

import json

import click

from .paths import saved_model
from .view.show import percent, print_table, say


@click.command("diff")
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(one: str, other: str, as_json: bool) -> None:
    """Show how far the masks of A and B agree, layer by layer: runs, files of models or of masks, hf:OWNER/NAME.

    Intersection over union is the share that both keep of the weights that either keeps.
    """
    paths = [saved_model(one), saved_model(other)]
    from sparsify.errors import SparsifyError
    from sparsify.formats.model.masks import load_masks
    from sparsify.overlap import iou_by_chance, overlap_by_layer, total

    masks = [load_masks(path) for path in paths]
    for name, found in zip((one, other), masks, strict=True):
        if not found:
            raise SparsifyError(f"{name}: no masks in it")
    rows = overlap_by_layer(*masks, names=(one, other))
    if as_json:
        whole = total(rows)
        click.echo(json.dumps({"layers": [row.to_dict() for row in rows], "total": whole.to_dict()}, indent=2))
        return
    from .view.mask_overlap import overlap_table

    print_table(overlap_table(rows))
    chance = iou_by_chance(*masks)
    say(f"{percent(total(rows).iou)} of the weights that A or B keeps are kept by both; by chance {percent(chance)}")
