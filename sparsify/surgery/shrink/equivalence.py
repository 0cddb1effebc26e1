"""Check that a cut model is equivalent to the model it was cut from (translation validation)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...relative_error import relative_error
from ..analysis.counted_pass import counted_pass
from ..channels.study import Study
from ..copies import deep_copy
from ..recording.context import all_double
from ..recording.ops import described
from ..recording.recorder import record
from ..recording.size_watch import modules_that_ask
from ..sizes.other_inputs import Variant, in_train_mode, outputs, training_outputs, variants, watched_outputs
from ..sizes.size_attributes import PrunedShapes
from .cuts import every_tensor
from .rounding import moved_by_rounding

# The largest allowed relative error; in narrow dtypes the order of a sum matters.
LIMIT_64 = 1e-10
LIMITS = {torch.float64: LIMIT_64, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


# Cuts a model, in place, and returns a function that undoes it.
Cutting: TypeAlias = Callable[[nn.Module], Callable[[], None]]


class Proof:
    """Compares the outputs of cut models with those of the whole model, in float64 and in the model's own precision.

    After a check, `multiply_adds` is that of the cut model. After a successful check, `difference` holds the relative
    errors (float64, own precision) and `seconds` the median times of a forward pass (whole, cut).
    """

    def __init__(self, whole: nn.Module, example_input: Any, examples: Sequence[Any] = (), *, wanted: bool) -> None:
        self.wanted = wanted
        self.difference: tuple[float, float] | None = None
        self.seconds: tuple[float, float] | None = None
        self.multiply_adds: int | None = None  # of the cut model, if all of its operations can be counted
        self.training = ""  # how the models compare in train mode
        self.variants: tuple[Variant, ...] = ()  # the other inputs that the whole model takes
        self._example = example_input
        self._double = None
        self._moved: dict[int, float] = {}  # id of an input -> relative change of the whole model's outputs by rounding
        if wanted:
            started = time.perf_counter()
            self._single_outputs, self._asked = watched_outputs(whole, example_input)
            self._whole_seconds = _median(time.perf_counter() - started, whole, example_input)
            self.variants = variants(whole, example_input, examples)
            self._training_outputs = training_outputs(whole, self.widest_input())
            dtypes = {torch.get_default_dtype(), *(t.dtype for t in every_tensor(whole).values())}
            self._limit, self._least = max((LIMITS[d], torch.finfo(d).eps) for d in dtypes if d in LIMITS)
            self._double = wide_copy(whole)
            self._double_example = doubles(example_input)
            self._double_outputs = self._in_double()

    def check(self, small: nn.Module, cutting: Cutting, found: Study, new_shapes: PrunedShapes) -> tuple[str, str]:
        """Return the problem of a cut model and the module where it is, ("", "") if its outputs are right."""
        try:
            outcome, first = self._run(small)
        except Exception as error:  # noqa: BLE001 - the model's own code may fail on smaller sizes
            problem = f"its forward does not take fewer channels ({described(error)})"
            return problem, _failing(small, self._example)
        if self._double is None:
            return "", ""
        shapes, expected = ([tuple(t.shape) for t in side] for side in (outcome, self._single_outputs))
        if shapes != expected:
            problem = f"outputs have the shapes {shapes} instead of {expected}"
            return self._explained(problem, self._example), self._first(cutting, found, new_shapes)
        single = relative_error(outcome, self._single_outputs)
        double = float("inf")
        if single <= self._limit:
            with ExitStack() as restored:
                restored.callback(cutting(self._double))
                double = relative_error(self._in_double(), self._double_outputs)
        if single <= self._limit and double <= LIMIT_64:
            for variant in self.variants:
                problem = variant.problem(small, self._limit)
                if problem:
                    return self._explained(problem, variant.input), ""
            self.training = in_train_mode(self._training_outputs, small, self.widest_input(), self._limit)
            self.difference = (double, single)
            self.seconds = (self._whole_seconds, _median(first, small, self._example))
            return "", ""
        problem = f"outputs differ by {single if single > self._limit else double:.1e} of the largest"
        return self._explained(problem, self._example), self._first(cutting, found, new_shapes)

    def _run(self, small: nn.Module) -> tuple[list[Tensor], float]:
        """Return the outputs of a cut model, and the time of the pass; not proved, zeros, if it runs on such."""
        if not self.wanted:
            with suppress(Exception):  # which the computed pass raises again, if there is one
                return self._counted(small, computed=False)
        return self._counted(small, computed=True)

    def _counted(self, small: nn.Module, *, computed: bool) -> tuple[list[Tensor], float]:
        with counted_pass(computed=computed) as counting:
            ran = _timed(small, self._example)
        self.multiply_adds = counting.multiply_adds if counting.complete else None
        return ran

    def _explained(self, problem: str, given: Any) -> str:
        """Return the problem; if rounding alone moves the whole model's outputs beyond the limit, the text says so."""
        assert self._double is not None
        if "outputs" not in problem:
            return problem
        if id(given) not in self._moved:
            self._moved[id(given)] = moved_by_rounding(self._double, doubles(given), self._least)
        moved = self._moved[id(given)]
        if moved <= self._limit:
            return problem
        finite = moved < float("inf")
        does = f"moves the whole model's by {moved:.1e}" if finite else "changes what the whole model puts out"
        return f"{problem}, but rounding alone {does}, as where top-k or NMS choose between near equals"

    def that_ask_for_sizes(self) -> list[str]:
        """Return the modules that compare sizes of their input in Python: other sizes may take another branch."""
        return modules_that_ask([self._asked, *(variant.asked for variant in self.variants)])

    def widest_input(self) -> Any:
        """Return the larger batch if the model takes it, else the example: norms in train mode need several inputs."""
        return next((v.input for v in self.variants if v.what.startswith("a batch")), self._example)

    def _in_double(self) -> list[Tensor]:
        assert self._double is not None
        with all_double():
            return outputs(self._double, self._double_example)

    def _first(self, cutting: Cutting, found: Study, new_shapes: PrunedShapes) -> str:
        """Return the module of the first operation whose results differ from the kept part of the whole model's."""
        assert self._double is not None
        whole: list[tuple[Tensor, ...]] = []
        small: list[tuple[Tensor, ...]] = []
        with all_double(), ExitStack() as restored:
            record(self._double, self._double_example, whole)
            restored.callback(cutting(self._double))
            record(self._double, self._double_example, small)
        for op, before, after in zip(found.recording.ops, whole, small, strict=False):
            for value, a, b in zip(op.results, before, after, strict=False):
                if tuple(a.shape) != value.shape:  # a size that depends on values, which differ in float64
                    return ""
                for d in range(a.dim()):
                    a = a.index_select(d, torch.from_numpy(np.flatnonzero(new_shapes.kept_along(value, d))))
                if a.shape != b.shape or (a.is_floating_point() and relative_error([b], [a]) > LIMIT_64):
                    return op.module
        return ""


def _timed(model: nn.Module, example_input: Any) -> tuple[list[Tensor], float]:
    """Return the outputs of one forward pass and its time in seconds."""
    started = time.perf_counter()
    return outputs(model, example_input), time.perf_counter() - started


def _median(first: float, model: nn.Module, example_input: Any) -> float:
    """Return the median time of three forward passes in seconds; `first` is the time of the first one."""
    return sorted([first, *(_timed(model, example_input)[1] for _ in range(2))])[1]


def wide_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in float64, without an intermediate copy in the model's own precision."""
    wide: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided and not tensor.__dict__
        if plain and tensor.is_floating_point():
            made = tensor.detach().double()
            made = made.clone() if made.data_ptr() == tensor.data_ptr() else made
            grad = tensor.requires_grad
            wide[id(tensor)] = nn.Parameter(made, grad) if isinstance(tensor, nn.Parameter) else made
    copied: nn.Module = deep_copy(model, wide)
    return copied.double()


def doubles(example_input: Any) -> Any:
    """Return an example input with its floating tensors in float64."""
    return tree_map_only(Tensor, lambda one: one.double() if one.is_floating_point() else one, example_input)


def _failing(model: nn.Module, example_input: Any) -> str:
    """Return the path of the innermost module whose forward raises, found in a second run with hooks."""
    with _running(model) as modules:
        try:
            outputs(model, example_input)
        except Exception:  # noqa: BLE001 - the error was reported before
            return modules[-1]
    return ""


@contextmanager
def _running(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that holds, after an error, the paths of the modules that were running, the innermost last."""
    running = [""]

    def leave(*_: Any) -> None:
        running.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
                hooks.enter_context(module.register_forward_hook(leave))
        yield running
