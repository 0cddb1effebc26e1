"""sparsify recipe-schema"""

from __future__ import annotations

import json

import click


@click.command("recipe-schema")
def command() -> None:
    """Print the JSON schema of recipes, with which editors complete keys and mark mistakes."""
    from sparsify.training.recipe.read import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))
