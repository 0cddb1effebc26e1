"""The engine: a model as compiled programs, one for each input shape, run by several threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..calls import Inputs as Call
from ..calls import run as run_call
from ..errors import EngineWarning
from ..ops import is_transformed
from .call_inputs import Inputs, Shapes, flattened, images_in, shown, unusable
from .call_outputs import flatten_outputs
from .engine_text import strategy_text
from .kernel_errors import Fault, OtherSizes, by_reason
from .program.assemble import Array
from .program.plan import Plan, alone, execute, make_plan, memory
from .threads.forks import reset_in_child
from .threads.signal_safe import untorn
from .threads.thread_pool import Workers
from .trial_calls import kept_state, trial_calls
from .tuning import cache
from .tuning.search import TORCH, Strategy, autotune, candidates, check

_VALUES = 8  # programs for other values of non-tensor arguments, with tensors of one size


class Engine:
    """A compiled model. Calling it returns the model's output in eval mode, without gradients or autocast.

    It holds a copy of the weights, so that later changes of the model do not affect it. Kernels take float32, integer
    and bool tensors on the CPU; PyTorch runs calls with others. The first call with another input shape compiles
    another program. Several threads may call it; calls run one after the other. An exception of a signal handler during
    a call, e.g. of Ctrl-C, ends that call only. Copies, also pickled ones, and the engine in a child process have their
    own threads; if a handler or a hook calls the engine during a call of the same thread, PyTorch runs that call, as
    it does within torch.compile, torch.jit.trace and torch.func.
    """

    def __init__(self, model: nn.Module, threads: int, tune: bool) -> None:
        self.model = model
        self.threads = threads
        self.strategies: dict[Shapes, Strategy] = {}
        self.known: dict[Shapes, Strategy] = {}  # of a file: used instead of tuning if their outputs are right
        self.note = ""
        self.uses_kernels = True
        self._tune = tune
        self._left: set[str] = set()  # lines on inputs left to PyTorch and strategies not used
        self._failed: dict[str, str] = {}  # operations whose kernels failed: why
        self.reset_process_state()

    def reset_process_state(self) -> None:
        """Reset what belongs to one process; it is created when first needed."""
        self._plans: dict[tuple[Shapes, frozenset[str]], Plan] = {}
        self._shown: dict[Shapes, Plan] = {}
        self._buffers: dict[int, Array] = {}
        self._workers: Workers | None = None
        self._lock = threading.Lock()
        self._owner = 0
        reset_in_child(self)

    def __getstate__(self) -> dict[str, Any]:
        mine = ("_plans", "_shown", "_buffers", "_workers", "_lock", "_owner")
        return {name: value for name, value in self.__dict__.items() if name not in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The machine and the version may differ: strategies are checked before use.
        self.known, self.strategies = {**self.known, **self.strategies}, {}
        self.reset_process_state()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_transformed():  # a tracer or transform would see the outputs as constants, without gradient or batch
            return self.model(*args, **kwargs)
        # Torch's context managers are written in Python, so that a signal handler may raise within them.
        gradients, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        try:
            torch._C._set_grad_enabled(False)
            torch.set_autocast_enabled("cpu", False)
            return self._answer(Call(*args, **kwargs))
        finally:
            torch._C._set_grad_enabled(gradients)
            torch.set_autocast_enabled("cpu", autocast)

    def _answer(self, call: Call) -> Any:
        inputs = flattened(call)
        reason = unusable(inputs)
        if reason:
            self._left.add(reason)
        empty = not inputs.tensors or any(x.numel() == 0 for x in inputs.tensors)
        if reason or empty or not self.uses_kernels or self._owner == threading.get_ident():
            return run_call(self.model, call)
        with self._lock:
            self._owner = threading.get_ident()
            try:
                key = inputs.key
                if key not in self.strategies and self._too_many(inputs):
                    return run_call(self.model, call)
                if key not in self.strategies:
                    self.strategies[key] = self._choose(inputs)
                try:
                    return self._run(self.strategies[key], inputs)
                except OtherSizes as error:
                    self.strategies[key] = replace(TORCH, why=str(error))
                    self._warn(f"input {shown(key)} is left to PyTorch from now on: {error}")
                    return run_call(self.model, call)
            finally:
                self._owner = 0

    def _too_many(self, inputs: Inputs) -> bool:
        """Return whether there are already _VALUES programs for other values of non-tensor arguments."""
        sizes = inputs.sizes
        if inputs.key == sizes or sum(set(sizes) <= set(key) and key != sizes for key in self.strategies) < _VALUES:
            return False
        many = f"with more than {_VALUES} values of what is no tensor"
        self._left.add(f"input {shown(sizes)}, {many}: PyTorch: each value takes a program of its own: give tensors")
        return True

    def __str__(self) -> str:
        """Return how each input shape so far runs: strategy, times of the strategies tried, instructions."""
        found = [f"engine of {type(self.model).__name__}, {self.threads} thread{'s' if self.threads > 1 else ''}"]
        found += [*([self.note] if self.note else []), *sorted(self._left)]
        found += [f"{name}: left to PyTorch as its kernel failed: {why}" for name, why in self._failed.items()]
        strategies = [*self.strategies.items()]
        found += [strategy_text(key, one, self._shown.get(key), self.model) for key, one in strategies]
        return "\n".join(found)

    def _choose(self, inputs: Inputs) -> Strategy:
        """Return the strategy for these inputs, found by calls that leave the model as it was."""
        with trial_calls(self.model):
            state = kept_state(self.model, lambda: flatten_outputs(run_call(self.model, inputs.call()))[0])
            if not state:
                return self._fastest(inputs)
        self._report(inputs, [Fault(str(TORCH), state, raised=True)], alone=True)
        return replace(TORCH, why=state)

    def _fastest(self, inputs: Inputs) -> Strategy:
        def run(strategy: Strategy) -> list[Any]:
            return flatten_outputs(self._run(strategy, inputs))[0]

        def plan(strategy: Strategy) -> Plan:
            return self._plan(strategy, inputs.part(0, strategy.images) if strategy.kind == "chunks" else inputs)

        name = cache.key(self.model, inputs.key, self.threads) if self._tune else ""
        before = self.known.get(inputs.key) or (cache.recall(name) if self._tune else None)
        faults: list[Fault] = []
        if before is not None:
            fault = None if before.kind == "torch" else check(run, before, run(TORCH))
            if fault is None:
                return before
            faults.append(fault)
        images = images_in([*inputs.cut, *run(TORCH)])
        single = bool(inputs.cut) and all(len(x) == 1 for x in inputs.cut)
        strategies = candidates(images, single, self.threads)
        strategy = autotune(run, plan, strategies, self._tune, faults)
        self._report(inputs, faults, alone=strategy.kind == "torch" and not strategy.seconds)
        # A strategy chosen because of a failure is not cached.
        if strategy.seconds and not self._failed and not any(fault.ours for fault in faults):
            cache.keep(name, strategy)
        return strategy

    def _report(self, inputs: Inputs, faults: Sequence[Fault], alone: bool) -> None:
        """Warn of failed strategies, once for each reason; `alone`: no strategy but PyTorch is right."""
        key = shown(inputs.key)
        for why, strategies in by_reason(faults, alone).items():
            self._warn(f"input {key} {'is left to PyTorch' if alone else f'is not run by {strategies}'}: {why}")
            self._left |= set() if alone else {f"input {key}: not used: {strategies}: {why}"}

    def _run(self, strategy: Strategy, inputs: Inputs) -> Any:
        """Return the outputs for `inputs` by one strategy."""
        if strategy.kind == "torch":
            return run_call(self.model, inputs.call())
        if strategy.kind == "chunks":
            return self._chunks(strategy, inputs)
        plan = self._shown[inputs.key] = self._plan(strategy, inputs)
        outputs = execute(plan, inputs.tensors, self._memory(0, plan), self._team().split)
        return plan.outline.filled(outputs)

    def _chunks(self, strategy: Strategy, inputs: Inputs) -> Any:
        """Return the outputs, computed in chunks of images: each thread takes the next chunk until none is left."""
        count, images = len(inputs.cut[0]), strategy.images
        begins = list(range(0, count, images))
        sizes = {min(images, count - begin): begin for begin in begins}
        plans = {size: self._plan(strategy, inputs.part(begin, images)) for size, begin in sizes.items()}
        shown = self._shown[inputs.key] = plans[min(images, count)]
        if shown.sized and len(begins) > 1:
            raise OtherSizes("sizes depend on values, perhaps on those of other images")
        found: list[list[Any]] = [[] for _ in begins]
        left = list(range(len(begins)))[::-1]

        def task(thread: int) -> None:
            """Compute chunks until none is left."""
            try:
                while left:
                    try:
                        index = left.pop()
                    except IndexError:  # another thread took the last one
                        return
                    begin = begins[index]
                    plan = plans[min(images, count - begin)]
                    found[index] = execute(plan, inputs.part(begin, images).tensors, self._memory(thread, plan), alone)
            except BaseException:
                left.clear()
                raise

        if len(begins) == 1:
            task(0)
            return shown.outline.filled(found[0])
        try:
            self._team().run(task)
        finally:
            left.clear()  # after an interrupt no thread starts another chunk
        return shown.outline.filled([torch.cat(parts) for parts in zip(*found, strict=True)])

    def _plan(self, strategy: Strategy, inputs: Inputs) -> Plan:
        """Return the plan for inputs of these shapes, made at the first call."""
        key = inputs.key, strategy.dense
        if key not in self._plans:

            def work() -> Plan:
                with torch.no_grad(), trial_calls(self.model):
                    return make_plan(self.model, inputs.tensors, inputs.call, lambda n: n.name not in strategy.dense)

            plan = self._plans[key] = untorn(work)
            for name, why in plan.failed.items():
                if name not in self._failed:
                    self._failed[name] = why
                    self._warn(f"{name} is left to PyTorch as its kernel failed: {why}")
        return self._plans[key]

    def _memory(self, thread: int, plan: Plan) -> Array:
        """Return a thread's buffers, large enough for a plan."""
        if thread not in self._buffers or len(self._buffers[thread]) < plan.program.floats:
            self._buffers[thread] = memory(plan.program.floats)
        return self._buffers[thread]

    def _team(self) -> Workers:
        """Return the threads, new ones if any has ended."""
        if self._workers is None or not self._workers.alive:
            # A remaining old thread may still use its buffers.
            self._buffers, self._workers = {}, Workers(self.threads)
        return self._workers

    def _warn(self, line: str) -> None:
        warnings.warn(f"engine of {type(self.model).__name__}: {line}", EngineWarning, stacklevel=2)
