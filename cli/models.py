"""sparsify models"""

from __future__ import annotations

import click

from sparsify.errors import SparsifyError, did_you_mean


@click.command("models")
@click.argument("pattern", required=False)
def command(pattern: str | None) -> None:
    """List the models that can be named in a recipe or by --model, one per line.

    PATTERN is a glob (timm:resnet*) or a part of a name (resnet).
    """
    from sparsify.models import list_models

    names = list_models(pattern)
    if not names:
        hint = did_you_mean(pattern or "", list_models())
        raise SparsifyError(f"no model matches '{pattern}'{hint}")
    click.echo("\n".join(names))
