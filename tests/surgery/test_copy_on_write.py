import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify.surgery.copy_on_write import CopyOnWrite


def address(tensor: Tensor) -> int:
    return int(torch._C._data_address(tensor))  # type: ignore[attr-defined]


def test_memory_is_shared_until_it_is_written_to_and_the_source_never_changes() -> None:
    layer = nn.BatchNorm1d(3)
    with CopyOnWrite() as memory:
        copies = memory.of_model(layer)
        weight, mean = copies[id(layer.weight)], copies[id(layer.running_mean)]
        assert address(weight) == address(layer.weight)
        weight.mul_(2)
        mean.data.numpy()[0] = 5.0
        assert weight.tolist() == [2, 2, 2] and mean.tolist() == [5, 0, 0]
    assert layer.weight.tolist() == [1, 1, 1] and layer.running_mean.tolist() == [0, 0, 0]  # type: ignore[union-attr]


def test_tensors_of_one_storage_stay_so() -> None:
    layer = nn.Linear(2, 2)
    layer.register_buffer("row", layer.weight.detach()[1])
    with CopyOnWrite() as memory:
        copies = memory.of_model(layer)
        copies[id(layer.weight)][1] = 7.0
        assert copies[id(layer.row)].tolist() == [7, 7]


@pytest.mark.parametrize("kept", [False, True])
def test_at_the_end_the_source_has_its_memory_to_itself_again(kept: bool) -> None:
    layer = nn.Linear(2, 2)
    before = address(layer.weight)
    with CopyOnWrite() as memory:
        copies = memory.of_model(layer)
        holder: list[object] = [copies]
        holder.append(holder)  # a circle, which only the garbage collector frees
        if not kept:
            del copies, holder
    assert address(layer.weight) == before
    assert not torch._C._is_cow_tensor(layer.weight)  # type: ignore[attr-defined]
    if kept:
        with torch.no_grad():
            layer.weight.zero_()
        assert copies[id(layer.weight)].abs().sum() > 0


def test_memory_of_others_is_copied() -> None:
    values = np.ones(6, np.float32)
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(values)[2:].view(2, 2))
    with CopyOnWrite() as memory:
        (copied,) = memory.of_model(layer).values()
        copied.zero_()
        freed = weakref.ref(copied)
        del copied
    gc.collect()
    assert values.tolist() == [1] * 6 and freed() is None
