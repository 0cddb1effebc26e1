"""Export of the folded model as an ONNX graph; removed weights are zeros."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..calls import Inputs, tensors_in
from ..errors import SparsifyError
from ..formats.io.atomic import atomic_write
from ..formats.request import ExportRequest, ExportResult, about_text
from .program import Exported, check_outputs, export_folded, quiet, reason_of

OPSET = 18
_LIMIT = 2**31 - 2**20  # of a protocol buffer, with room for the graph


def write_onnx(request: ExportRequest) -> ExportResult:
    """Write an ONNX file of operator set 18 whose initializers are the folded weights, in float32.

    The metadata are in metadata_props, `sparsify.spec` and so on. The graph is checked by ONNX's checker and, if ONNX
    Runtime is installed, run: RunError unless its outputs equal the masked model's. Raises SparsifyError for a model
    that cannot be exported, or is larger than the 2 GB of an ONNX file.
    """
    needed = sum(tensor.numel() * 4 for tensor in request.model.state_dict().values() if torch.is_tensor(tensor))
    if needed > _LIMIT:
        has = f"this model has {needed / 1e9:.1f} GB"
        raise SparsifyError(f"save: onnx holds at most 2 GB in one file, {has}; pt2 takes it")
    exported = export_folded(request, torch.float32)
    content = _graph(exported, request)
    checked = _checked(content, exported)
    return ExportResult(
        atomic_write(request.path, content), (f"opset {OPSET}, float32, {exported.example}; {checked}",)
    )


def _graph(exported: Exported, request: ExportRequest) -> bytes:
    """Return the checked graph's bytes."""
    import onnx

    with quiet():
        try:
            model = _translated(exported.program)
        except Exception as error:  # noqa: BLE001 - an operator without a translation, mostly
            raise SparsifyError(f"save: onnx cannot hold this model: {reason_of(error.__cause__ or error)}") from error
        shapes = exported.example.shapes([value.name for value in model.graph.input])
        _name_sizes(model, shapes)
        for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
            del node.metadata_props[:]  # source locations
            node.doc_string = ""
        about = {**about_text(request.metadata), "sparsify.inputs": json.dumps(shapes)}
        for key, value in about.items():
            model.metadata_props.add(key=key, value=value)
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # noqa: BLE001 - the checker has errors of several kinds
            raise SparsifyError(f"save: the exporter made an invalid ONNX graph: {reason_of(error)}") from error
    content: bytes = model.SerializeToString()
    return content


def _translated(program: ExportedProgram) -> Any:
    try:
        done: Any = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception:  # noqa: BLE001 - tried again in another way
        # The translation of fused attention lacks some dimensions and strides; plain matrix products work.
        with sdpa_kernel(SDPBackend.MATH):
            done = torch.onnx.export(program.run_decompositions(), dynamo=True, opset_version=OPSET, verbose=False)
    return done.model_proto


def _name_sizes(model: Any, shapes: Mapping[str, list[int | str]]) -> None:
    """Replace the exporter's symbols of free dimensions by their names."""
    names = {
        dimension.dim_param: str(name)
        for value in model.graph.input
        for dimension, name in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False)
        if dimension.dim_param
    }
    if not names:
        return
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = pattern.sub(lambda found: names[found[0]], dimension.dim_param)


def _checked(content: bytes, exported: Exported) -> str:
    try:
        import onnxruntime
    except ImportError:
        return "not run: onnxruntime is not installed"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - an operator that it does not implement, mostly
        raise SparsifyError(f"save: ONNX Runtime does not take the graph of this model: {reason_of(error)}") from error
    names = [value.name for value in session.get_inputs()]

    def call(inputs: Inputs) -> list[Tensor]:
        values = [tensor.numpy() for tensor in tensors_in(inputs)]
        return [torch.as_tensor(value) for value in session.run(None, dict(zip(names, values, strict=True)))]

    checked = check_outputs("onnx", call, exported.cases, exported.hint)
    return f"checked in ONNX Runtime {onnxruntime.__version__}: {checked}"
