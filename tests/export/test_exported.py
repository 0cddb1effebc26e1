"""Programs of torch.export and graphs of ONNX: what goes in, what comes back, and what cannot be exported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify
from sparsify.errors import RunError, SparsifyError
from sparsify.export import program as exported
from sparsify.export import registry
from sparsify.export.save import write
from tests.random_masks import randomly_masked

FORMATS = ["pt2", "onnx"]


class Two(nn.Module):
    """Takes two tensors and a tuple of them, returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, a: Tensor, rest: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        out = self.fc(a * rest[0])
        return {"out": out, "index": out.argmax(-1) + rest[1]}


class OneBatch(nn.Module):
    """Its forward only works with a batch of two."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x)).reshape(2, 4) if x.shape[0] == 2 else self.fc(x)


class Branching(nn.Module):
    """Its forward looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


class Windows(nn.Module):
    """Attention with a dimension of windows, more than ONNX's translation of fused attention takes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 2, 2, 3, 24).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


def masked(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomly_masked(model, 0.5)


def needed(format: str) -> None:
    for name in (*registry.FORMATS[format].needs, *(["onnxruntime"] if format == "onnx" else [])):
        pytest.importorskip(name)


def test_several_inputs_and_outputs_of_any_batch_come_back_in_pt2(tmp_path: Path) -> None:
    model = masked(Two()).eval()
    example = (torch.randn(1, 6), (torch.randn(1, 6), torch.tensor([3])))
    sparsify.save(model, tmp_path / "a.pt2", format="pt2", example_input=example)
    code = (
        "import torch\n"
        f"extra = {{'sparsify.writer': ''}}\nrun = torch.export.load({str(tmp_path / 'a.pt2')!r}, extra_files=extra)\n"
        f"torch.save((run.module()(*torch.load({str(tmp_path / 'x')!r})), extra), {str(tmp_path / 'y')!r})\n"
    )
    x = (torch.randn(7, 6), (torch.randn(7, 6), torch.arange(7)))
    torch.save(x, tmp_path / "x")
    subprocess.run([sys.executable, "-c", code], check=True)
    found, extra = torch.load(tmp_path / "y")
    wanted = model(*x)
    assert torch.allclose(found["out"], wanted["out"], rtol=1e-5) and torch.equal(found["index"], wanted["index"])
    inputs = '{"a": ["batch", 6], "rest.0": ["batch", 6], "rest.1": ["batch"]}'
    assert extra == {"sparsify.inputs": inputs, "sparsify.writer": sparsify.__version__}


def test_onnx_has_constant_weights_with_zeros_a_free_batch_and_says_what_it_is(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    needed("onnx")
    model = masked(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))
    x = torch.randn(1, 6)
    written = write(model, tmp_path / "a", "onnx", {"spec": "mine"}, {"example_input": x})
    assert "takes input [batch, 6]; free: batch; all other sizes are fixed" in written.notes[0]
    assert "checked in ONNX Runtime" in written.notes[0] and "(with batch=1, batch=3)" in written.notes[0]
    graph = onnx.load(tmp_path / "a")
    [input], [output] = graph.graph.input, graph.graph.output
    for value, size in ((input, 6), (output, 3)):
        batch, features = value.type.tensor_type.shape.dim
        assert (batch.dim_param, features.dim_value) == ("batch", size)
    assert graph.opset_import[0].version >= 18
    assert {one.key: one.value for one in graph.metadata_props} == {
        "sparsify.inputs": '{"input": ["batch", 6]}',
        "sparsify.spec": "mine",
        "sparsify.writer": sparsify.__version__,
    }
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.graph.initializer}
    folded = sparsify.fold(model).state_dict()
    for name, mask in sparsify.get_masks(model).items():
        found = torch.as_tensor(constants[name].copy())
        found = found if found.shape == mask.shape else found.T
        assert torch.equal(found, folded[name]) and int((found != 0).sum()) == int(mask.sum())
    assert str(Path(__file__).parent).encode() not in (tmp_path / "a").read_bytes()


def test_attention_in_five_dimensions_goes_to_onnx_as_plain_products(tmp_path: Path) -> None:
    needed("onnx")
    written = write(masked(Windows()), tmp_path / "a", "onnx", {}, {"example_input": torch.randn(1, 12, 6)})
    assert "free: batch; all other sizes are fixed; checked in ONNX Runtime" in written.notes[0]


@pytest.mark.parametrize("format", FORMATS)
def test_a_fixed_batch_where_it_cannot_vary(format: str, tmp_path: Path) -> None:
    needed(format)
    model, x = masked(OneBatch()), torch.randn(2, 6)
    with pytest.raises(SparsifyError, match=r"^save: torch.export does not take this model: with batch free"):
        sparsify.save(model, tmp_path / "a", format=format, example_input=x)
    assert not list(tmp_path.iterdir())
    written = write(model, tmp_path / "a", format, {}, {"example_input": x, "batch_size": 2})
    assert "takes x [2, 6]; all sizes are fixed" in written.notes[0]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("model", [Branching()], ids=["branching"])
def test_a_model_that_cannot_be_exported_is_one_line_with_the_reason(
    model: nn.Module, format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    needed(format)
    with pytest.raises(
        SparsifyError, match="^save: torch.export does not take this model: [^\n]*data-dependent[^\n]*$"
    ):
        sparsify.save(masked(model), tmp_path / "a", format=format, example_input=torch.randn(2, 6))
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_a_packed_sequence_is_one_line_with_the_way_around(tmp_path: Path) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.rnn(packed)[0].data  # type: ignore[no-any-return]

    with pytest.raises(SparsifyError, match="in a program recurrent layers take padded ones$"):
        example = torch.randn(2, 5, 4), torch.tensor([5, 3])
        sparsify.save(masked(Packed()), tmp_path / "a", format="pt2", example_input=example)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (None, "^save: pt2 needs an example_input"),
        (torch.randn(2, 7), "^save: the model does not take the example_input: "),
        (
            (torch.randn(2, 6), torch.randn(3, 6)),
            r"^save: the example_input does not fit forward\(input\): ",
        ),
        ("text", "^save: the example_input must be tensors of one batch size"),
        (torch.randn(0, 6), "^save: the example_input must be tensors of one batch size"),
    ],
)
def test_an_example_that_does_not_fit_is_one_line(example: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match=expected) as caught:
        sparsify.save(masked(nn.Linear(6, 4)), tmp_path / "a", format="pt2", example_input=example)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_outputs_that_are_not_the_models_are_an_error_and_nothing_is_written(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed(format)

    def other(model: nn.Module) -> nn.Module:
        folded = sparsify.fold(model)
        with torch.no_grad():
            folded.weight[0] *= 1.001
        return folded

    monkeypatch.setattr(exported, "fold", other)
    with pytest.raises(RunError, match="^save: [^\n]* differ from the masked model's by [^\n]* nothing was written$"):
        sparsify.save(masked(nn.Linear(6, 4)), tmp_path / "a", format=format, example_input=torch.randn(2, 6))
    assert not list(tmp_path.iterdir())


def test_half_precision_and_a_model_of_another_type_go_out(tmp_path: Path) -> None:
    model = masked(nn.Linear(6, 4)).bfloat16()
    sparsify.save(model, tmp_path / "a", format="pt2", example_input=torch.randn(2, 6))
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    assert torch.equal(torch.export.load(tmp_path / "a").module()(x), model(x))


def test_without_onnx_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        registry.FORMATS, "onnx", registry.FORMATS["onnx"]._replace(needs=("onnx_that_is_not_there",), install="that")
    )
    with pytest.raises(SparsifyError, match="^save: onnx needs onnx_that_is_not_there: pip install that$"):
        sparsify.save(nn.Linear(6, 4), tmp_path / "a", format="onnx", example_input=torch.randn(2, 6))


def test_without_onnx_runtime_the_graph_is_not_run_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    written = write(masked(nn.Linear(6, 4)), tmp_path / "a", "onnx", {}, {"example_input": torch.randn(2, 6)})
    assert written.notes[0].endswith("not run: onnxruntime is not installed")


def test_onnx_of_more_than_it_holds_is_refused_at_once(tmp_path: Path) -> None:
    needed("onnx")
    with torch.device("meta"):
        model = nn.Linear(2**15, 2**15)
    with pytest.raises(SparsifyError, match="^save: onnx holds at most 2 GB in one file, this model has 4.3 GB"):
        sparsify.save(model, tmp_path / "a", format="onnx", example_input=torch.randn(2, 6))


def test_a_nan_where_the_model_has_none_is_no_agreement() -> None:
    case = exported.Case(sparsify.Inputs(torch.zeros(1)), (torch.tensor([1.0, 2.0]),))
    with pytest.raises(RunError, match="differ from the masked model's by inf"):
        exported.check_outputs("pt2", lambda _: [torch.tensor([float("nan"), 2.0])], [case])
