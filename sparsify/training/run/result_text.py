"""What a run came to, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...quantities import percent


def of_average(metrics: Mapping[str, Any]) -> str:
    """Return words to follow test figures that are of an average of the weights, "" for those of the weights."""
    return ", of the average of the weights (train.ema)" if metrics.get("test_weights") == "average" else ""


def result_lines(metrics: Mapping[str, Any], shrunk: Mapping[str, Any] | None) -> list[str]:
    """Return what a shrink left of the model, if there was one, and the test accuracy, if it is known."""
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
