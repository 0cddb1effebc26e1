"""The result of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...quantities import percent


def of_average(metrics: Mapping[str, Any]) -> str:
    """Return the note for test results of the averaged weights (`train.ema`), "" for those of the model's own."""
    return ", of the average of the weights (train.ema)" if metrics.get("test_weights") == "average" else ""


def result_lines(metrics: Mapping[str, Any], shrunk: Mapping[str, Any] | None) -> list[str]:
    """Return a line on the shrunk model, if there is one, and a line with the test accuracy, if it is known."""
    lines = []
    if shrunk is not None:
        shares = (shrunk[name] for name in ("multiply_adds", "parameters"))
        multiply_adds, parameters = (percent(after / before if before else 1.0) for before, after in shares)
        lines.append(f"the shrunk model has {multiply_adds} of the multiply-adds and {parameters} of the parameters")
    if metrics.get("test_accuracy") is not None:
        lines.append(
            f"test accuracy {percent(metrics['test_accuracy'])}, loss {metrics['test_loss']:.4f}{of_average(metrics)}"
        )
    return lines
