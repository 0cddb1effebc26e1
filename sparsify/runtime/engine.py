"""The engine: a model as programs of steps, one for each shape of its inputs, run by several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from . import remembered
from .describe import text
from .plan import Plan, alone, execute, make_plan, memory
from .program import Array
from .tuning import CHUNKS, TORCH, Way, checked, choose
from .workers import Workers

Shapes = tuple[tuple[int, ...], ...]


class Engine:
    """A compiled model. Calling it returns what the model returns in evaluation mode, without gradients.

    It holds a copy of the weights: what happens to the model later does not matter to it. Inputs are float32 tensors on
    the CPU (others go to torch). Inputs of another shape make another program when they come first. Several threads
    may call it; one after the other has its turn.
    """

    def __init__(self, model: nn.Module, threads: int, tune: bool) -> None:
        self.model = model
        self.threads = threads
        self.ways: dict[Shapes, Way] = {}
        self.known: dict[Shapes, Way] = {}  # of a file: taken in place of what tuning finds, if they are right
        self.note = ""
        self._left: set[str] = set()
        self._tune = tune
        self._plans: dict[tuple[Shapes, frozenset[str]], Plan] = {}
        self._buffers: dict[int, Array] = {}
        self._workers = Workers(threads)
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        flat, structure = pytree.tree_flatten(args)
        usable = all(isinstance(x, Tensor) and x.dtype == torch.float32 and x.device.type == "cpu" for x in flat)
        with torch.no_grad():
            if not usable:
                self._left.add(_kinds(flat))
            if not usable or not flat or any(x.numel() == 0 for x in flat):
                return self.model(*args)
            with self._lock:
                shapes = tuple(tuple(x.shape) for x in flat)
                if shapes not in self.ways:
                    self.ways[shapes] = self._choose(flat, structure)
                return self._run(self.ways[shapes], flat, structure)

    def __str__(self) -> str:
        """Return how each shape that came so far is run: way, seconds of those timed, steps."""
        found = [f"engine of {type(self.model).__name__}, {self.threads} thread{'s' if self.threads > 1 else ''}"]
        found += [self.note] if self.note else []
        found += [f"input of {kinds}: PyTorch: kernels are for float32 on the CPU" for kinds in sorted(self._left)]
        for shapes, way in self.ways.items():
            size = ", ".join("x".join(map(str, shape)) for shape in shapes)
            found.append(f"input {size}: {way}{f': {way.why}' if way.why else ''}")
            found += [f"  {1e3 * seconds:9.2f} ms  {name}" for name, seconds in way.seconds.items()]
            plan = self._plans.get((_chunk(shapes, way), way.dense))
            if plan is not None and way.kind != "torch":
                found.append(text(plan, self.model, way.dense))
        return "\n".join(found)

    def _choose(self, flat: Sequence[Tensor], structure: Any) -> Way:
        def run(way: Way) -> list[Any]:
            return pytree.tree_leaves(self._run(way, flat, structure))

        def plan(way: Way) -> Plan:
            return self._plan(way, [x[: way.images] for x in flat] if way.kind == "chunks" else flat, structure)

        name = remembered.key(self.model, flat, self.threads) if self._tune else ""
        shapes = tuple(tuple(x.shape) for x in flat)
        before = self.known.get(shapes) or (remembered.recall(name) if self._tune else None)
        if before is not None and (before.kind == "torch" or not checked(run, before, run(TORCH))):
            return before
        images = _images([*flat, *run(TORCH)])
        most = -(-images // self.threads)
        chunks = sorted({min(most, size) for size in CHUNKS}, reverse=True) if images > 1 else []
        ways = [*(Way("chunks", size) for size in chunks), Way("split")]
        if self.threads > 1 and all(x.dim() and len(x) == 1 for x in flat):
            # Threads that wait for each other after every step may take longer than one alone.
            ways.append(Way("chunks", 1))
        way = choose(run, plan, ways, self._tune)
        if self._tune:
            remembered.keep(name, way)
        return way

    def _run(self, way: Way, flat: Sequence[Tensor], structure: Any) -> Any:
        """Return the outputs for flat inputs by one way."""
        if way.kind == "torch":
            return self.model(*pytree.tree_unflatten(flat, structure))
        if way.kind == "split":
            plan = self._plan(way, flat, structure)
            outputs = execute(plan, flat, self._memory(0, plan), self._workers.split)
            return pytree.tree_unflatten(outputs, plan.structure)
        return self._chunks(way, flat, structure)

    def _chunks(self, way: Way, flat: Sequence[Tensor], structure: Any) -> Any:
        """Return the outputs, computed chunk by chunk: each thread takes the next one until there is none."""
        count, images = len(flat[0]), way.images
        begins = list(range(0, count, images))
        plans = {
            size: self._plan(way, [x[:size] for x in flat], structure)
            for size in {min(images, count - begin) for begin in begins}
        }
        found: list[list[Tensor]] = [[] for _ in begins]
        left = iter(range(len(begins)))
        turn = threading.Lock()

        def task(thread: int) -> None:
            """Take chunks until there is none left."""
            with torch.no_grad():
                while True:
                    with turn:
                        index = next(left, None)
                    if index is None:
                        return
                    part = [x[begins[index] : begins[index] + images] for x in flat]
                    plan = plans[len(part[0])]
                    found[index] = execute(plan, part, self._memory(thread, plan), alone)

        if len(begins) > 1:
            self._workers.run(task)
        else:
            task(0)
        joined = [torch.cat(parts) for parts in zip(*found, strict=True)]
        return pytree.tree_unflatten(joined, plans[min(images, count)].structure)

    def _plan(self, way: Way, flat: Sequence[Tensor], structure: Any) -> Plan:
        """Return the plan for inputs of these shapes, made when it is first asked for."""
        key = tuple(tuple(x.shape) for x in flat), way.dense
        if key not in self._plans:
            self._plans[key] = make_plan(
                self.model,
                flat,
                lambda tensors: pytree.tree_unflatten(list(tensors), structure),
                lambda node: node.name not in way.dense,
            )
        return self._plans[key]

    def _memory(self, thread: int, plan: Plan) -> Array:
        """Return a thread's own buffers, large enough for a plan."""
        if thread not in self._buffers or len(self._buffers[thread]) < plan.program.floats:
            self._buffers[thread] = memory(plan.program.floats)
        return self._buffers[thread]


def _kinds(values: Sequence[Any]) -> str:
    """Return of which types inputs are, and where: "float16 on cuda:0"."""
    kinds = [f"{x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__ for x in values]
    return ", ".join(dict.fromkeys(kinds)).replace("torch.", "")


def _chunk(shapes: Shapes, way: Way) -> Shapes:
    """Return the shapes of the first chunk."""
    if way.kind != "chunks":
        return shapes
    return tuple((min(way.images, shape[0]), *shape[1:]) for shape in shapes)


def _images(values: Sequence[Any]) -> int:
    """Return the size of the first dimension that all values have alike, 1 if they have none."""
    sizes = {len(value) if isinstance(value, Tensor) and value.dim() else 0 for value in values}
    return max(1, *sizes) if len(sizes) == 1 else 1
