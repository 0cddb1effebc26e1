"""The section of results.md on models of the field, made of the rows of `wild`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from ...record import Row, environment, record
from .checks import STAGES

INTRODUCTION = """
Small configurations of models that people train, with random weights; nothing is fetched. *exact*: 70 % of each layer
removed, floor(0.7 n) in every one. *save*: the file loads into a fresh model with the same outputs. *units*: half of
the units of each layer removed and shrunk, the same outputs in float64 for another batch and another size; in brackets
the share of parameters left. *engine*: a strategy with kernels gives the outputs, whether or not PyTorch is faster.
*onnx*, *pt2*: exported, and the outputs compared. `+` holds, `-` is a gap, with its reason below; a blank was not run.
Stages were run again where they were blank or failed, so that rows are of several states of the code, each stage of the
last one it was run with.
"""
_DISTRIBUTIONS = {"segmentation_models_pytorch": "segmentation-models-pytorch", "open_clip": "open_clip_torch"}


def summarise(found: Mapping[str, Row], packages: Iterable[str]) -> None:
    """Write the section `coverage.wild` of results.md, and print it."""
    installed = [name for name in dict.fromkeys(packages) if name != "torch" and find_spec(name) is not None]
    names = [_DISTRIBUTIONS.get(name, name) for name in installed]
    lines = [environment("torch", *names, threads=1), INTRODUCTION, *table(found), "", *reasons(found)]
    body = "\n".join(lines)
    record("coverage.wild", body)
    print(body)


def table(found: Mapping[str, Row]) -> list[str]:
    """Return the rows of the table as Markdown, the counts last; a stage that was not run is blank."""
    lines = [f"| model | {' | '.join(STAGES)} |", f"|---{'|---' * len(STAGES)}|"]
    held, run = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0)
    for name, row in found.items():
        cells = []
        for stage in STAGES:
            holds = row.get(stage) == "ok"
            held[stage] += holds
            run[stage] += stage in row
            left = f" ({row['after'] / row['parameters']:.0%})" if stage == "units" and holds else ""
            cells.append(f"{'+' if holds else '-'}{left}" if stage in row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = " | ".join(f"**{held[stage]}/{run[stage]}**" for stage in STAGES)
    return [*lines, f"| all | {totals} |"]


def reasons(found: Mapping[str, Row]) -> list[str]:
    """Return a line for each gap; gaps of one reason share it."""
    gaps: dict[str, list[str]] = {}
    for name, row in found.items():
        for stage in STAGES:
            if stage in row and row[stage] != "ok":
                gaps.setdefault(f"{stage}: {row[stage]}", []).append(name)
        if not any(stage in row for stage in STAGES):
            gaps.setdefault("; ".join(row.get("problems", ["no row"])), []).append(name)
    return [f"- {', '.join(names)}: {gap}" for gap, names in gaps.items()]
