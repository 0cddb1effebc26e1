"""The model card of a folder for the Hugging Face hub: Markdown with YAML front matter, from the sparse file alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ..formats.file.inspection import FileSummary
from ..formats.file.metadata import Metadata
from ..quantities import byte_count, count, percent, sizes
from ..transformers_models import CONFIG

_LOAD = """## Load it

```python
import sparsify

model = sparsify.load("hf:OWNER/NAME"{given})  # this repository's name, or the path of its folder
scores = model(images){images}
```

That needs `pip install sparsify-torch`. {comes} `fold=True` gives the plain dense model with zeros in place."""


def card(saved: FileSummary) -> str:
    """Return the card of the model in a sparse file: accuracy, how to load it, figures, sparsity by layer, recipe."""
    about = saved.metadata
    name = about.spec or "A model of a class of one's own"
    arguments = ", ".join(f"{key}={value!r}" for key, value in about.arguments.items() if key != CONFIG)
    sparse = "" if saved.sparsity is None else f", {percent(saved.sparsity)} of its masked weights removed"
    shape, accuracy, data = about.extra.get("input_shape"), _accuracy(about), trained_on(about)
    measured = "" if accuracy is None else f"**Test accuracy {percent(accuracy)}**{f' on {data}' if data else ''}"
    sections = [
        _head(about),
        f"# {name}, sparse" if sparse else f"# {name}",
        *([measured] if measured else []),
        f"{f'`{about.spec}`' if about.spec else 'A model'}{f' with {arguments}' if arguments else ''}{sparse}, "
        f"in one file of sparsify.",
        _LOAD.format(
            given="" if about.spec else ", model",
            images=f"  # [batch, {', '.join(map(str, shape))}]" if shape else "",
            comes="The model comes in evaluation mode with its masks on;"
            if about.spec
            else "`model` is an instance of the class that was saved, and gets the masks too;",
        ),
        "## Figures",
        _table(("", ""), _figures(saved)),
        *_layers(saved),
        *([f"## Recipe\n\n```yaml\n{about.recipe.strip()}\n```"] if about.recipe else []),
    ]
    return "\n\n".join(sections) + "\n\n"


def trained_on(about: Metadata) -> str | None:
    """Return the name of the data set in a file's recipe, None if it has none."""
    name = _recipe_value(about, "data", "name")
    return name if isinstance(name, str) else None


def _recipe_value(about: Metadata, section: str, key: str) -> Any:
    """Return the value of a key of a section of the recipe, which may be any text that a user gave; None for none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe").load(about.recipe or "")
    except YAMLError:
        return None
    part = found.get(section) if isinstance(found, dict) else None
    return part.get(key) if isinstance(part, dict) else part if key == "name" else None


def _head(about: Metadata) -> str:
    """Return the card's YAML front matter; a licence only if the run started from published weights that have one."""
    from huggingface_hub import EvalResult, ModelCardData

    accuracy, data, origin = _accuracy(about), trained_on(about) or "unknown", _origin(about)
    result = EvalResult(
        task_type="image-classification",
        dataset_type=data,
        dataset_name=data,
        metric_type="accuracy",
        metric_name="test accuracy",
        metric_value=accuracy,
    )
    head = ModelCardData(
        library_name="sparsify",
        tags=["sparsify", "sparsity", "pruning", *(["timm"] if (about.spec or "").startswith("timm:") else [])],
        pipeline_tag=None if accuracy is None else "image-classification",
        model_name=about.spec or "sparse model",
        eval_results=None if accuracy is None else [result],
        license=origin.get("license"),
        base_model=origin.get("base_model"),
    )
    return f"---\n{head.to_yaml()}\n---"


def _accuracy(about: Metadata) -> float | None:
    """Return the test accuracy among a file's metrics, in [0, 1]."""
    value = about.metrics.get("test_accuracy")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _origin(about: Metadata) -> dict[str, str]:
    """Return licence and name of the published weights from which the run started, where timm has them."""
    spec = about.spec or ""
    if not spec.startswith("timm:") or not _recipe_value(about, "model", "pretrained"):
        return {}
    from timm.models import get_pretrained_cfg

    try:
        published = get_pretrained_cfg(spec.removeprefix("timm:"))
    except RuntimeError:  # timm knows no such weights
        return {}
    found = {"license": getattr(published, "license", None), "base_model": getattr(published, "hf_hub_id", None)}
    return {key: value for key, value in found.items() if value}


def _figures(saved: FileSummary) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table of figures, accuracies first."""
    metrics = {key: _number(value) for key, value in saved.metadata.metrics.items()}
    yield from ((key, text) for key, text in metrics.items() if "accuracy" in key)
    data = trained_on(saved.metadata)
    if data is not None:
        yield "data", data
    dense = saved.bytes_original
    if saved.sparsity is not None:
        yield "sparsity of the masked weights", percent(saved.sparsity)
        yield "masked weights kept", f"{saved.kept:,} of {saved.masked_entries:,}"
    yield "numbers in all", f"{saved.entries:,}"
    if saved.original_entries != saved.entries:
        yield "numbers before channels were cut out", f"{saved.original_entries:,}"
    yield "size of the file", byte_count(saved.bytes_file)
    yield "size of the dense model", byte_count(dense)
    if dense:
        yield "file / dense", percent(saved.bytes_file / dense)
    if saved.metadata.cast:
        yield "values are rounded to", saved.metadata.cast
    yield from ((key, text) for key, text in metrics.items() if "accuracy" not in key)


def _number(value: Any) -> str:
    """Return a metric as text: numbers with six digits, everything else as JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _layers(saved: FileSummary) -> list[str]:
    rows = saved.masked_rows
    if not rows:
        return []
    cells = [
        (f"`{row.name}`", sizes(row.shape, scalar="-"), f"{row.kept:,}", percent(row.sparsity or 0.0)) for row in rows
    ]
    most = max(rows, key=lambda row: (row.sparsity or 0.0, -math.prod(row.shape)))
    least = min(rows, key=lambda row: (row.sparsity or 0.0, -math.prod(row.shape)))
    summary = (
        f"{count(len(rows), 'masked tensor')}, from {percent(least.sparsity or 0.0)} (`{least.name}`) "
        f"to {percent(most.sparsity or 0.0)} (`{most.name}`)."
    )
    table = _table(("layer", "shape", "kept", "sparsity"), cells)
    return ["## Sparsity by layer", summary, f"<details><summary>all of them</summary>\n\n{table}\n\n</details>"]


def _table(titles: tuple[str, ...], rows: Any) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
