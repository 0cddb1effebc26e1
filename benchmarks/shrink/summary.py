"""shrink.csv and a section of results.md, from the rows of shrunk models."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

from ..record import Row, environment, record, rows

TABLE = Path(__file__).parent / "shrink.csv"
SECTION = "shrink --part models"


def seconds_of(side: Row, *parts: str) -> float | None:
    """Return the seconds of these parts of the work, or of all of it: the median over the rounds. None if it failed."""
    if not side.get("times") or side["verdict"] != "works":
        return None
    return median(float(sum(times.get(part, 0.0) for part in parts or times)) for times in side["times"])


def ratio(row: Row, *parts: str) -> float | None:
    """Return our seconds, of these parts or of all, over all of the peer's; None unless both did it."""
    mine, theirs = seconds_of(side(row, "ours"), *parts), seconds_of(side(row, "peer"))
    return mine / theirs if mine is not None and theirs else None


def side(row: Row, name: str) -> Row:
    """Return one side's part of a row; of a model whose process ended early, the reason for that."""
    ended = {"verdict": "fails", "problem": "; ".join(row.get("problems", ["no result"]))}
    found: Row = row.get(name, ended)
    return found


def line(row: Row) -> str:
    """Return a row as one line, to show progress."""
    parts = []
    for name in ("ours", "peer"):
        one = side(row, name)
        taken = seconds_of(one)
        parts.append(f"{name} {one['verdict']}" + (f" {taken:.2f} s" if taken else f" ({one.get('problem', '')[:90]})"))
    quotient = ratio(row)
    return ", ".join(parts) + (f", ratio {quotient:.2f}" if quotient else "")


def summarise(file: Path) -> None:
    """Write shrink.csv and the section of results.md from all rows."""
    found = sorted(rows(file).values(), key=lambda row: row["model"])
    with TABLE.open("w", newline="") as out:
        table = [flat(row) for row in found]
        writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    record(SECTION, "\n".join(body(found)))
    print("\n".join(body(found)))


def flat(row: Row) -> dict[str, object]:
    """Return one row of the table."""
    quotient = ratio(row)
    cells: dict[str, object] = {key: row.get(key, "") for key in ("model", "input", "parameters")}
    for name, parts in (("ours", ("find", "mask", "cut")), ("peer", ("find", "cut"))):
        one = side(row, name)
        cells[f"{name}"] = one["verdict"]
        cells[f"{name}_after"] = one.get("after", "")
        cells[f"{name}_removed"] = _rounded(1 - one["after"] / row["parameters"]) if "after" in one else ""
        cells[f"{name}_output_change"] = _rounded(one.get("changed"))
        cells |= {f"{name}_seconds_{part}": _rounded(seconds_of(one, part)) for part in parts}
        cells[f"{name}_problem"] = one.get("problem", "")
    cells["ours_cut_difference"] = _rounded(side(row, "ours").get("difference"))
    cells["ours_seconds_cut_with_proof"] = _rounded(side(row, "ours").get("with_proof"))
    return {**cells, "ratio_of_seconds": _rounded(quotient)}


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def body(found: list[Row]) -> list[str]:
    """Return the lines of the section."""
    both = [row for row in found if ratio(row) is not None]
    lines = [
        environment("torch", "timm", "torchvision", "torch-pruning", threads=1),
        "Half of the units of every coupled layer go, by L2 norm; the classifier stays. The weights are random.",
        "Works: the smaller model runs, its outputs have the same shape, less than 95 % of the parameters are left.",
        "Seconds are of processor time, from the dense model to the smaller one, without our proof; rounds alternate.",
        "Every model is a row of [shrink.csv](shrink.csv).",
        "",
        "| | sparsify | Torch-Pruning |",
        "|---|---|---|",
    ]
    for zoo in ("torchvision", "timm"):
        part = [row for row in found if row["model"].startswith(f"{zoo}:")]
        good = [sum(side(row, name)["verdict"] == "works" for row in part) for name in ("ours", "peer")]
        lines.append(f"| {zoo}: work, of {len(part)} | {good[0]} | {good[1]} |")
    if both:
        lines += _on_both(both)
    for name, title in (("ours", "sparsify"), ("peer", "Torch-Pruning")):
        lines += _failures(found, name, title)
    return lines


def _on_both(both: list[Row]) -> list[str]:
    """Return the rows of the table for the models that both can do, and the list of those where we are slower."""
    lines = []
    removed, seconds, changed = [], [], []
    for name in ("ours", "peer"):
        removed.append(median(1 - row[name]["after"] / row["parameters"] for row in both))
        seconds.append(median(seconds_of(row[name]) or 0.0 for row in both))
        changed.append(median(row[name]["changed"] for row in both))
    same = sum(row["ours"]["after"] == row["peer"]["after"] for row in both)
    lines.append(f"| on the {len(both)} of both: parameters removed, median | {removed[0]:.1%} | {removed[1]:.1%} |")
    lines.append(f"| the same count of parameters left | {same} | {same} |")
    lines.append(f"| change of the output by pruning, median | {changed[0]:.2g} | {changed[1]:.2g} |")
    lines.append(f"| seconds, median | {seconds[0]:.3g} | {seconds[1]:.3g} |")
    slower = sorted((row for row in both if (ratio(row) or 0) > 1), key=ratio, reverse=True)  # type: ignore[arg-type]
    exact = max((row["ours"].get("difference", 0.0) for row in both), default=0.0)
    proofs = [row["ours"]["with_proof"] / (seconds_of(row["ours"], "cut") or 1) for row in both]
    lines += [
        "",
        "Ratio of our seconds to the peer's: " + _spread([ratio(row) or 0.0 for row in both]) + "; without the masks, "
        "which the peer has none of: " + _spread([ratio(row, "find", "cut") or 0.0 for row in both]) + ".",
        f"With its proof our cut takes {median(proofs):.2f} times as long (median).",
        f"Both change the output by what they choose to prune. Our cut itself changes the output of the masked model "
        f"by {exact:.1e} of the largest at most (float64, other images); the peer has no masked model to hold against.",
        "",
        f"We take longer on {len(slower)}:" if slower else "We take longer on none.",
    ]
    for row in slower:
        mine, theirs = (seconds_of(row[name]) for name in ("ours", "peer"))
        lines.append(f"- {row['model']}: {mine:.2f} s, the peer {theirs:.2f} s ({ratio(row):.2f})")
    return lines


def _spread(values: list[float]) -> str:
    quarters = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"median {quarters[1]:.2f}, quartiles {quarters[0]:.2f} to {quarters[2]:.2f}, at most {max(values):.2f}"


def _failures(found: list[Row], name: str, title: str) -> list[str]:
    reasons: Counter[str] = Counter()
    of: dict[str, list[str]] = {}
    for row in found:
        one = side(row, name)
        if one["verdict"] != "works":
            words = one.get("problem", "").split(": ")
            reason = ": ".join(words[:2])[:70] if words[0] == "does not run" else words[0][:70]
            reasons[reason] += 1
            of.setdefault(reason, []).append(row["model"])
    lines = ["", f"{title} fails on {reasons.total()}:" if reasons else f"{title} fails on none."]
    return lines + [f"- {reason}: {', '.join(of[reason])} ({times})" for reason, times in reasons.most_common()]
