"""What `print(engine)` shows of one shape of inputs."""

from __future__ import annotations

from torch import nn

from .call_inputs import Shapes, shown
from .program.describe import text
from .program.plan import Plan
from .tuning.search import Strategy


def strategy_text(key: Shapes, strategy: Strategy, plan: Plan | None, model: nn.Module) -> str:
    """Return how inputs of a shape are run, in lines: strategy, seconds of those timed, instructions."""
    found = [f"input {shown(key)}: {strategy}{f': {strategy.why}' if strategy.why else ''}"]
    found += [f"  {1e3 * seconds:9.2f} ms  {name}" for name, seconds in strategy.seconds.items()]
    if plan is not None and strategy.kind != "torch":
        found.append(text(plan, model, strategy.dense))
    return "\n".join(found)
