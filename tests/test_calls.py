import copy
import pickle
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sparsify
from sparsify.calls import inputs_of, plain, run, tensors_in
from sparsify.errors import SparsifyError


class Taking(nn.Module):
    def forward(self, x: Any, y: Any = None, *, mask: Any = None) -> Any:
        return x, y, mask


class One(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch


class Keys(nn.Module):
    def forward(self, *, ids: Any, mask: Any) -> Any:
        return ids, mask


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (1, (1, None, None)),
        ((1, 2), (1, 2, None)),
        ({"x": 1, "mask": 3}, (1, None, 3)),
        (UserDict({"x": 1, "mask": 3}), (1, None, 3)),
        ([1, 2], ([1, 2], None, None)),
        (sparsify.Inputs(1, mask=3), (1, None, 3)),
        (sparsify.Inputs((1, 2)), ((1, 2), None, None)),
        (sparsify.Inputs({"a": 1}), ({"a": 1}, None, None)),
    ],
)
def test_an_example_is_a_call(example: Any, expected: Any) -> None:
    assert run(Taking(), inputs_of(example, "here", Taking())) == expected


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (
            One(),
            (1, 2),
            r"forward\(batch\): too many positional [^\n]* write sparsify.Inputs\(example_input\)$",
        ),
        (One(), {"ids": 1}, r"forward\(batch\): missing a required [^\n]* write sparsify.Inputs\(example_input\)$"),
        (Taking(), {"z": 1}, r"forward\(x, y=..., \*, mask=...\): [^\n]* write sparsify.Inputs\(example_input\)$"),
        (
            Keys(),
            1,
            r"forward\(\*, ids, mask\): [^\n]* arguments or sparsify.Inputs\(\*args, \*\*kwargs\)$",
        ),
        (Keys(), {"ids": 1}, r"missing a required (keyword-only )?argument: 'mask'; give a tensor, a tuple"),
        (One(), {3: 1}, r"3 is no argument's name; as one argument it is sparsify.Inputs\(example_input\)$"),
    ],
)
def test_a_call_that_does_not_fit_is_one_line_with_the_right_one(model: nn.Module, example: Any, message: str) -> None:
    with pytest.raises(SparsifyError, match=f"^here: [^\n]*{message}") as caught:
        inputs_of(example, "here", model)
    assert "\n" not in str(caught.value)


def test_a_list_for_several_arguments_is_shown_as_a_tuple() -> None:
    class Two(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a, b

    with pytest.raises(SparsifyError, match=r"a list is one argument: give tuple\(example_input\)$"):
        inputs_of([1, 2], "here", Two())


def test_inputs_keep_what_they_were_given() -> None:
    inputs = sparsify.Inputs(torch.ones(1), mask=None)
    with pytest.raises(AttributeError):
        inputs.args = ()  # type: ignore[misc]
    assert repr(sparsify.Inputs(1, mask=2)) == "Inputs(1, mask=2)"
    for again in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert torch.equal(again.args[0], inputs.args[0]) and again.kwargs == {"mask": None}
    doubled = pytree.tree_map_only(Tensor, lambda x: 2 * x, inputs)
    assert doubled.args[0].item() == 2 and doubled.kwargs == {"mask": None}


def test_tensors_are_found_in_outputs_of_any_kind() -> None:
    @dataclass
    class Output:
        logits: Tensor
        cache: Any = None

    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    outputs = {"out": Output(a, (b, None)), "rest": SimpleNamespace(c=c), "step": 3, "more": UserDict({"a": a})}
    assert [id(x) for x in tensors_in(outputs)] == [id(x) for x in (a, b, c, a)]


def test_plain_output_of_an_object_is_what_holds_tensors() -> None:
    class Layer:
        def __init__(self) -> None:
            self.keys, self.seen, self.dtype, self.device = torch.ones(2), 3, torch.float32, torch.device("cpu")

    class Cache:
        def __init__(self) -> None:
            self.layers, self.kind, self.more = [Layer()], Layer, None

    found = plain({"cache": Cache()})
    assert found.keys() == {"cache"} and found["cache"].keys() == {"layers"}
    (layer,) = found["cache"]["layers"]
    assert layer.keys() == {"keys"} and layer["keys"].tolist() == [1, 1]
