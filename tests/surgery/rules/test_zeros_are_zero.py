"""Every transfer function against the recorded pass: what liveness calls zero is zero in the tensors computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsify.surgery.dataflow.liveness import Liveness
from sparsify.surgery.recording.recorder import record
from sparsify.surgery.rules.table import Rules

from .test_rules import CASES

FINITE = [name for name in CASES if name != "weight_norm_makes_nan_of_zeros"]  # products that hold NaN are barriers


def zero_some(model: nn.Module, generator: torch.Generator) -> None:
    """Set about half of the rows, and some of the columns, of every tensor to zero; every fourth tensor whole."""
    with torch.no_grad():
        for number, parameter in enumerate([*model.parameters(), *model.buffers()]):
            if not parameter.is_floating_point() or not parameter.dim():
                continue
            parameter += 0.1 + torch.rand(parameter.shape, generator=generator)  # biases begin at zero
            for d in range(min(2, parameter.dim())):
                share = (0.5, 0.25)[d] if number % 4 != 3 else 1.0
                gone = torch.rand(parameter.shape[d], generator=generator) < share
                parameter.movedim(d, 0)[gone] = 0


def wrong_zeros(model: nn.Module, x: object) -> list[str]:
    """Return the operations of which an entry that liveness calls zero is not."""
    results: list[tuple[Tensor, ...]] = []
    recording = record(model, x, results)
    found = Liveness(recording, Rules().flow, {})
    assert not found.failures
    wrong = []
    for op, tensors in zip(recording.ops, results, strict=True):
        for value, tensor in zip(op.results, tensors, strict=True):
            flags = found.of(value).detach().expand(tensor.shape)
            values = torch.view_as_real(tensor).abs().sum(-1) if tensor.is_complex() else tensor
            if bool((values[flags == 0] != 0).any()):
                wrong.append(op.name)
    return wrong


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FINITE)
def test_what_liveness_calls_zero_is_zero(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x, _ = CASES[name]()
    zero_some(model, torch.Generator().manual_seed(seed))
    assert wrong_zeros(model.eval(), x) == []


def test_the_check_can_fail() -> None:
    class Forgets(Rules):
        def flow(self, op):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201, ANN202
            if op.name == "sigmoid":
                return lambda live, op: live.set(op.results[0], live.of(op.inputs[0]).clone())
            return super().flow(op)

    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Sigmoid())
    with torch.no_grad():
        model[0].weight[1] = 0  # type: ignore[index, union-attr, operator]
    results: list[tuple[Tensor, ...]] = []
    recording = record(model, torch.randn(2, 3), results)
    flags = Liveness(recording, Forgets().flow, {}).of(recording.outputs[0])
    assert bool((results[-1][0][flags.detach().expand(2, 4) == 0] != 0).any())
