"""coverage.csv and the sections of results.md, made of the rows that the coverage benchmark has collected."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ..record import Row, environment, record

TABLE = Path(__file__).parent / "coverage.csv"
_SHOWN = 12  # the most models named for a cause

INTRODUCTION = """
Every model of timm and every torchvision model that is not quantized, with random weights (scales, biases and
statistics of batch norms moved off 0 and 1), the smallest input that it takes, batches of two, dropout and drop path at
0.1 where timm takes them. *Same bits*: outputs in eval mode, and in train mode with the same seed outputs, gradients
and buffers, equal those before the conversion. *No dense weight*: with random half masks no conv, linear, attention or
recurrent operation sees a weight past its mask. A model past the run's limits of parameters, memory or
time is converted on the meta device, where there are no bits to compare. Row by row:
[coverage.csv](coverage/coverage.csv).
"""

COLUMNS = (
    "model,parameters,weights,masked,live,unused,keys_kept,same_bits_eval,same_bits_train,leaks,bits,input,"
    "conversion,cause,units,parameters_after,multiply_adds_left,difference,form,shrink,shrink_cause"
).split(",")


def summarise(conversion: Mapping[str, Row], shrink: Mapping[str, Row]) -> None:
    """Write coverage.csv and the sections of results.md; what there are no rows for stays as it was."""
    table = stored()
    for model, row in conversion.items():
        table[model] = table.get(model, {}) | csv_row(row)
    for model, row in shrink.items():
        table[model] = table.get(model, {"model": model, "parameters": row["parameters"]}) | shrink_columns(row)
    with TABLE.open("w", newline="") as file:
        written = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        written.writeheader()
        written.writerows(table[model] for model in sorted(table))
    measured = environment("torch", "timm", "torchvision", threads=1)
    if conversion:
        record("coverage", "\n".join([measured, INTRODUCTION, *conversion_lines(conversion)]))
    if shrink:
        record("coverage --part shrink", "\n".join([measured, "", *shrink_lines(shrink)]))


def stored() -> dict[str, Row]:
    """Return the rows of coverage.csv by model; none if it is not there."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def csv_row(row: Row) -> Row:
    """Return the columns of the conversion."""
    return {
        "model": row["model"],
        "parameters": row["parameters"],
        **{name: row.get(name, "") for name in ("weights", "masked", "live", "unused", "leaks", "input")},
        "keys_kept": row.get("keys", ""),
        "same_bits_eval": _known(row.get("eval")),
        "same_bits_train": _known(row.get("train")),
        "bits": row.get("bits", "").partition(":")[0],
        "conversion": row["verdict"],
        "cause": "; ".join(causes(row)),
    }


def shrink_columns(row: Row) -> Row:
    """Return the columns of the shrinking; `parameters_after` is told only of models that keep their outputs."""
    return {
        "units": row.get("units", ""),
        "parameters_after": row.get("after", ""),
        "multiply_adds_left": round(share(row), 4) if "multiply_adds" in row else "",
        "difference": f"{row['difference']:.1e}" if "difference" in row else "",
        "form": row.get("form", ""),
        "shrink": row["verdict"],
        "shrink_cause": "; ".join(shrink_causes(row)),
    }


def share(row: Row) -> float:
    """Return the share of the multiply-adds that is left."""
    before, after = row["multiply_adds"]
    return float(after / max(1, before))


def shrink_causes(row: Row) -> list[str]:
    """Return what went wrong, and the first reason why dead units stayed."""
    return [*row["problems"], *row.get("barrier", [])[:1], *row.get("kept", [])[:1]]


def _known(value: bool | None) -> str | bool:
    return "" if value is None else value


def causes(row: Row) -> list[str]:
    """Return why a model's conversion does not hold: problems, or what could not be compared."""
    if row["verdict"] == "holds":
        return []
    limit = [row["bits"]] if row.get("bits", "").startswith("meta") else []
    return [*row.get("problems", []), *limit, *row.get("notes", [])]


def conversion_lines(rows: Mapping[str, Row]) -> list[str]:
    """Return the table of counts and the list of every model that does not hold in full."""
    zoos = {
        zoo: [row for row in rows.values() if row["model"].startswith(f"{zoo}:")] for zoo in ("timm", "torchvision")
    }

    def count(what: Callable[[Row], Any]) -> str:
        return " | ".join(f"{sum(bool(what(row)) for row in some):,}" for some in zoos.values())

    def total(name: str) -> str:
        return " | ".join(f"{sum(row.get(name, 0) for row in some):,}" for some in zoos.values())

    count_missed = " | ".join(str(sum(len(row.get("missed", ())) for row in some)) for some in zoos.values())

    def on_cpu(row: Row) -> bool:
        return bool(row.get("bits") == "cpu")

    lines = ["| conversion | timm | torchvision |", "|---|---|---|"]
    lines += [
        f"| {what} | {counts} |"
        for what, counts in (
            ("models", count(lambda row: True)),
            ("convert", count(lambda row: "masked" in row)),
            ("`state_dict` keeps its keys and order, masks added", count(lambda row: row.get("keys"))),
            ("every mask live or its weight not used by the forward", count(all_live)),
            ("run with values", count(on_cpu)),
            ("same bits in eval mode", count(lambda row: row.get("eval"))),
            ("same bits in train mode", count(lambda row: row.get("train"))),
            ("no dense weight under half masks", count(lambda row: on_cpu(row) and row.get("leaks") == 0)),
            ("all of this holds", count(lambda row: row["verdict"] == "holds")),
            ("only on the meta device, where all that can be told holds", count(_holds_on_meta)),
            ("float parameters of two or more dimensions", total("weights")),
            ("of these masked", total("masked")),
            ("of these live", total("live")),
            ("of these not used by the forward", total("unused")),
            ("conv, linear, attention and recurrent weights without a mask", count_missed),
        )
    ]
    missed = {model: sorted({why for why in row.get("missed", {}).values()}) for model, row in rows.items()}
    return [
        *lines,
        "",
        *_listed("Not in full", {model: causes(row) for model, row in rows.items()}),
        *_listed("Weights of such modules without a mask", missed),
    ]


def all_live(row: Row) -> bool:
    """Whether every mask has an effect on the output, except weights that the forward does not use."""
    return "live" in row and row["live"] + row["unused"] == row["masked"]


def _holds_on_meta(row: Row) -> bool:
    return row.get("bits", "").startswith("meta") and row["verdict"] == "part" and all_live(row)


def _listed(title: str, found: Mapping[str, list[str]]) -> list[str]:
    """Return one line per cause with the models that share it."""
    groups: dict[str, list[str]] = defaultdict(list)
    for model, why in sorted(found.items()):
        if why:
            groups["; ".join(why)].append(model)
    if not groups:
        return []
    lines = [f"{title}:", ""]
    for cause, models in sorted(groups.items(), key=lambda group: -len(group[1])):
        more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
        lines.append(f"- {cause}: {', '.join(models[:_SHOWN])}{more} ({len(models)})")
    return [*lines, ""]


def shrink_lines(rows: Mapping[str, Row]) -> list[str]:
    """Return what was shrunk, zoo by zoo and with either word for `dead`, and every miss with its cause."""
    by_word = {"masks": rows, "zeros": {model: row | row.get("zeros", {}) for model, row in rows.items()}}
    zoos = {
        f"{zoo}, {word}": [row for row in some.values() if row["model"].startswith(f"{zoo}:")]
        for zoo in ("timm", "torchvision")
        for word, some in by_word.items()
    }
    lines = [
        "Half of the units of every layer pruned by magnitude, the classifier left alone, then shrunk with `dead`",
        "masks and with zeros. A model counts if at least 5 % of its parameters go, its outputs equal the pruned",
        "model's within 1e-9 of the largest in double precision, for another batch and other values, and it trains.",
        "The rows are in [shrunk.jsonl](coverage/shrunk.jsonl).",
        "",
        f"| shrink | {' | '.join(zoos)} |",
        "|---|---|---|---|---|",
    ]
    for what, test in (
        ("models", lambda row: True),
        ("shrink", lambda row: row["verdict"] == "shrinks"),
        ("to a model of the same class", lambda row: row["verdict"] == "shrinks" and row["form"] == "own class"),
    ):
        lines.append(f"| {what} | " + " | ".join(str(sum(map(test, some))) for some in zoos.values()) + " |")
    for what, left in (
        ("parameters left, mean of those", lambda row: row["after"] / row["parameters"]),
        ("multiply-adds left, mean of those", share),
    ):
        shrunk = [[left(row) for row in some if row["verdict"] == "shrinks"] for some in zoos.values()]
        lines.append(f"| {what} | " + " | ".join(f"{fmean(values):.0%}" if values else "" for values in shrunk) + " |")
    lines.append("")
    for word, some in by_word.items():
        missed = {model: shrink_causes(row) for model, row in some.items() if row["verdict"] != "shrinks"}
        lines += _listed(f"Not shrunk, {word}", missed)
    return lines
