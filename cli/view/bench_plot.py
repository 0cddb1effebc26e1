"""The chart of `sparsify bench --plot`: the slowest layers on the engine, PyTorch beside each."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, no_grad

from sparsify.formats.io.atomic import atomic_write
from sparsify.preserve import torch_threads
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.program.describe import lines

from .bench_steps import Timed, call_of, has_line, kind, least, part_and_plan

if TYPE_CHECKING:
    from sparsify.runtime.engine import Engine
    from sparsify.runtime.tuning.search import Strategy

MOST = 15
_COLOURS = {"sparse kernel": "tab:blue", "dense kernel": "tab:cyan", "torch": "tab:red", "other kernels": "tab:gray"}
_TORCH = "tab:orange"
_LONGEST = 34  # characters of a layer's name


@dataclass(frozen=True)
class Bar:
    """A layer's seconds on the engine and in PyTorch, and the kind of its slowest step on the engine."""

    name: str
    engine: float
    torch: float
    kind: str


def bars(engine: Engine, x: Tensor, strategy: Strategy, steps: Sequence[Timed]) -> list[Bar]:
    """Return the slowest layers of timed steps, slowest first, with PyTorch's time for the same operations.

    Operations that the engine fuses into a layer (a norm, a sum, an activation) count with that layer in PyTorch too.
    """
    seconds: dict[str, float] = {}
    longest: dict[str, Timed] = {}
    for step in steps:
        name = step.line.name
        seconds[name] = seconds.get(name, 0.0) + step.seconds
        if name not in longest or step.seconds > longest[name].seconds:
            longest[name] = step
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:MOST]
    torch = _torch_seconds(engine, x, strategy, slowest)
    return [Bar(name, seconds[name], torch.get(name, 0.0), kind(longest[name].line.how)) for name in slowest]


def _torch_seconds(engine: Engine, x: Tensor, strategy: Strategy, wanted: Collection[str]) -> dict[str, float]:
    """Return PyTorch's shortest time for the operations of each layer in seconds, one by one on one thread."""
    part, plan = part_and_plan(engine, x, strategy)
    listed = [step for step in plan.instructions if has_line(step)]
    names = [line.name for line in lines(plan, engine.model, strategy.dense)]
    layer_of = {
        step.name if isinstance(step, Instruction) else step.node.name: name
        for step, name in zip(listed, names, strict=True)
    }
    values: dict[fx.Node, Any] = dict(zip(plan.inputs, [part], strict=True))
    found: dict[str, float] = {}
    layer = ""
    with torch_threads(1), no_grad():
        for node in plan.inputs[0].graph.nodes:
            if node.op != "call_function" or node in plan.known:
                continue
            layer = layer_of.get(node.name, layer)
            call = call_of(node, values, plan.known)
            values[node] = call()
            if layer in wanted:
                found[layer] = found.get(layer, 0.0) + least(call)
    return found


def draw(shown: Sequence[Bar], all_seconds: float, title: str, path: str) -> None:
    """Write a chart with two bars for each layer; `all_seconds` is the time of all steps on the engine."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 1.6 + 0.42 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places, colours = range(len(shown)), [_COLOURS[bar.kind] for bar in shown]
    axes.barh([place - 0.2 for place in places], [1e3 * bar.engine for bar in shown], 0.38, color=colours)
    axes.barh([place + 0.2 for place in places], [1e3 * bar.torch for bar in shown], 0.38, color=_TORCH)
    for place, bar in enumerate(shown):
        if bar.torch:
            text = f" {bar.torch / bar.engine:.1f}x"
            axes.text(1e3 * max(bar.engine, bar.torch), place, text, va="center", fontsize=9)
    axes.set_yticks(places, [_label(bar.name) for bar in shown], fontsize=10)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlabel("milliseconds; x: how many times as fast as PyTorch the engine is")
    share = 100 * sum(bar.engine for bar in shown) / all_seconds
    axes.set_title(f"{title}: the slowest layers, {share:.0f} % of the engine's time", fontsize=11)
    legend = [Patch(color=colour, label=f"engine: {name}") for name, colour in _COLOURS.items() if colour in colours]
    axes.legend(handles=[*legend, Patch(color=_TORCH, label="PyTorch")], loc="lower right", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:].lower(), dpi=150)
    atomic_write(path, content.getvalue())


def _label(name: str) -> str:
    """Return a layer's name, shortened to its end, in which layers differ."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
