"""sparsify recipe-schema"""

from __future__ import annotations

import json

import click


@click.command("recipe-schema")
def command() -> None:
    """Print the JSON schema of recipes. Editors that know it complete keys and mark mistakes while you type."""
    from sparsify.training.recipe.read import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))
