"""Pruning, then quantising to int8: what was removed is zero among the integers too."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify


def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    sparsify.convert(model)
    sparsify.Pruner(model, {"sparsity": 0.8, "schedule": "one_shot"}, total_steps=1).start()
    return model


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.filterwarnings("ignore")
def test_zeros_stay_zero_in_integers_of_torchao() -> None:
    quantization = imported("torchao.quantization")
    model = pruned()
    plain = sparsify.fold(model)
    x = torch.randn(4, 64)
    before = plain(x)
    kept = {name: plain.get_parameter(name) != 0 for name in ("0.weight", "2.weight")}
    quantization.quantize_(plain, quantization.Int8WeightOnlyConfig())
    for name, mask in kept.items():
        weight = plain.get_parameter(name)
        assert type(weight) is not nn.Parameter
        values = weight.dequantize()
        assert torch.equal(values[~mask], torch.zeros(int((~mask).sum())))
        assert float((values == 0).float().mean()) >= float((~mask).float().mean()) > 0.6
    torch.testing.assert_close(plain(x), before, rtol=0.1, atol=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_zeros_stay_zero_in_integers_of_onnxruntime(tmp_path: Path) -> None:
    onnx, quantization = imported("onnx"), imported("onnxruntime.quantization")
    model = pruned()
    sparsify.save(model, tmp_path / "a.onnx", format="onnx", example_input=torch.randn(1, 64))
    quantization.quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx", weight_type=quantization.QuantType.QInt8)
    found = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "b.onnx").graph.initializer}
    integers = [values for values in found.values() if values.dtype == "int8" and values.ndim == 2]
    assert sorted(values.shape for values in integers) == [(32, 16), (64, 32)]  # as matrix products take them
    assert all((values == 0).all() for name, values in found.items() if name.endswith("zero_point"))
    masks = {mask.T.shape: mask.T.numpy() for mask in sparsify.get_masks(model).values()}
    for values in integers:
        assert not values[~masks[values.shape]].any() and values[masks[values.shape]].any()
