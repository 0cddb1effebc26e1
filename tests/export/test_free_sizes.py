"""Which dimensions of an exported program may vary, and calls of every kind."""

import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import sparsify
from sparsify.calls import run, tensors_in
from sparsify.errors import RunError, SparsifyError
from sparsify.export.save import write
from tests.export.test_exported import FORMATS, masked, needed


class Pictures(nn.Module):
    """Takes pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


class Tokens(nn.Module):
    """Takes sequences of any length, up to ten."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position, self.head = nn.Embedding(9, 8), nn.Embedding(10, 8), nn.Linear(8, 2)

    def forward(self, *, ids: Tensor, mask: Tensor) -> Tensor:
        places = self.position(torch.arange(ids.shape[1]))
        return self.head((self.embed(ids) + places) * mask[..., None]).relu()


class Many(nn.Module):
    """Takes any number of tensors, and more by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, *xs: Tensor, **more: Tensor) -> Tensor:
        return self.fc(sum(xs) + sum(more.values()))


class Batch(nn.Module):
    """Takes one dict that holds a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        a, b = batch["pair"]
        return self.fc(a - b) * batch["scale"]


class Pair(nn.Module):
    """Takes one tuple, and a flag that has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, pair: tuple[Tensor, Tensor], positive: bool = False) -> Tensor:
        out = self.fc(pair[0] * pair[1])
        return out.abs() if positive else out


def _tokens(batch: int, length: int) -> dict[str, Tensor]:
    # In another order than the forward's.
    return {"mask": torch.ones(batch, length), "ids": torch.randint(9, (batch, length))}


def x(batch: int, features: int = 4) -> Tensor:
    return torch.randn(batch, features)


# model, an example, which dimensions vary (None: not said), another call, the shapes that the file tells
CASES: dict[str, tuple[type[nn.Module], Any, Any, Any, list[Any]]] = {
    "pictures of any size": (
        Pictures,
        torch.randn(1, 3, 16, 16),
        {"x": {0: "batch", 2: "height", 3: "width"}},
        torch.randn(5, 3, 12, 20),
        [["batch", 3, "height", "width"]],
    ),
    "one argument's dimensions, as torch writes them": (
        Pictures,
        torch.randn(2, 3, 16, 16),
        {0: Dim("batch"), -1: Dim.AUTO, 1: None},
        torch.randn(5, 3, 16, 20),
        [["batch", 3, 16, "x_3"]],
    ),
    "nothing": (Pictures, torch.randn(2, 3, 16, 16), {}, torch.randn(2, 3, 16, 16), [[2, 3, 16, 16]]),
    "tokens by keyword": (
        Tokens,
        _tokens(2, 5),
        {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
        _tokens(4, 9),
        [["batch", "length"], ["batch", "length"]],
    ),
    "the batch of keyword arguments": (Tokens, _tokens(2, 5), None, _tokens(4, 5), [["batch", 5], ["batch", 5]]),
    "*args": (Many, (x(2), x(2)), None, (x(5), x(5)), [["batch", 4], ["batch", 4]]),
    "*args with their dimensions": (
        Many,
        (x(2), x(1)),
        {"xs": ({0: "batch"}, None)},
        (x(5), x(1)),
        [["batch", 4], [1, 4]],
    ),
    "*args and **kwargs": (
        Many,
        sparsify.Inputs(x(2), z=x(2)),
        None,
        sparsify.Inputs(x(5), z=x(5)),
        [["batch", 4], ["batch", 4]],
    ),
    "one dict": (
        Batch,
        sparsify.Inputs({"pair": (x(2), x(2)), "scale": torch.randn(2, 1)}),
        None,
        sparsify.Inputs({"pair": (x(5), x(5)), "scale": torch.randn(5, 1)}),
        [["batch", 4], ["batch", 4], ["batch", 1]],
    ),
    "one dict with its dimensions": (
        Batch,
        sparsify.Inputs({"pair": (x(2), x(2)), "scale": torch.randn(1, 1)}),
        {"batch": {"pair": ({0: "rows"}, {0: "rows"})}},
        sparsify.Inputs({"pair": (x(5), x(5)), "scale": torch.randn(1, 1)}),
        [["rows", 4], ["rows", 4], [1, 1]],
    ),
    "one tuple and a flag": (
        Pair,
        sparsify.Inputs((x(2), x(2)), positive=True),
        None,
        sparsify.Inputs((x(5), x(5)), positive=True),
        [["batch", 4], ["batch", 4]],
    ),
}


def runner(format: str, path: Path) -> Callable[[sparsify.Inputs], list[Tensor]]:
    if format == "pt2":
        module = torch.export.load(path).module()
        return lambda inputs: tensors_in(run(module, inputs))
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [one.name for one in session.get_inputs()]

    def call(inputs: sparsify.Inputs) -> list[Tensor]:
        given = inputs if len(names) == 1 or inputs.args else sparsify.Inputs(**{n: inputs.kwargs[n] for n in names})
        values = [tensor.numpy() for tensor in tensors_in(given)]
        return [torch.as_tensor(y) for y in session.run(None, dict(zip(names, values, strict=True)))]

    return call


def told(format: str, path: Path) -> dict[str, Any]:
    if format == "pt2":
        extra = {"sparsify.inputs": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["sparsify.inputs"])
    onnx = pytest.importorskip("onnx")
    return json.loads({one.key: one.value for one in onnx.load(path).metadata_props}["sparsify.inputs"])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_a_file_takes_what_it_says(case: str, format: str, tmp_path: Path) -> None:
    needed(format)
    kind, example, dynamic, other, shapes = CASES[case]
    model = masked(kind()).eval()
    options = {"example_input": example, **({} if dynamic is None else {"dynamic_shapes": dynamic})}
    written = write(model, tmp_path / "a", format, {}, options)
    assert list(told(format, tmp_path / "a").values()) == shapes
    free = {size for shape in shapes for size in shape if isinstance(size, str)}
    assert all(f"{name}=" in written.notes[0] for name in free) and ("free: " in written.notes[0]) == bool(free)
    call = sparsify.calls.inputs_of(other, "test")
    [found] = runner(format, tmp_path / "a")(call)
    with torch.no_grad():
        wanted = run(model, call)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


Named = namedtuple("Named", "y, nothing")  # noqa: PYI024


@dataclass
class Output:
    y: Tensor
    nothing: None = None


class Attributes(dict[str, Any]):
    """A dict whose keys are attributes as well, as transformers has them."""


@pytest.mark.parametrize("kind", [Output, Named, lambda y, _: Attributes(y=y), lambda y, _: SimpleNamespace(y=y)])
def test_outputs_of_any_kind_come_back_as_dicts(kind: Callable[..., Any], tmp_path: Path) -> None:
    class Kind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return kind(self.fc(x), None), None, [x.sum(1)]

    model = masked(Kind()).eval()
    sparsify.save(model, tmp_path / "a", format="pt2", example_input=x(1))
    given = x(5)
    first, nothing, [total] = torch.export.load(tmp_path / "a").module()(given)
    wanted = tensors_in(model(given))
    assert nothing is None and torch.equal(total, wanted[1]) and torch.allclose(first["y"], wanted[0])


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "batch"}}, "save: dynamic_shapes: unknown argument 'y'[^\n]*known: x"),
        ({"x": {4: "depth"}}, "save: dynamic_shapes: x has 4 dimensions, and none of them is 4$"),
        ({"x": {"batch": 0}}, "save: dynamic_shapes: x has 4 dimensions, and none of them is 'batch'$"),
        ({"x": "batch"}, "save: dynamic_shapes: x: 'batch' is given, a dict"),
        ("batch", "save: dynamic_shapes: 'batch' is given, a dict is needed"),
        ({"x": {1: "channels"}}, "save: the model does not take [^\n]*another channels than 3[^\n]*dynamic_shapes"),
        ({"x": {0: "one", 1: "one"}}, "save: dynamic_shapes: 'one' is 2 in x and 3 in x"),
    ],
)
def test_dimensions_that_cannot_vary_are_one_line(dynamic: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match=f"^{message}"):
        example = torch.randn(2, 3, 8, 8)
        sparsify.save(masked(Pictures()), tmp_path / "a", format="pt2", example_input=example, dynamic_shapes=dynamic)
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_beside_other_free_sizes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"example_input": torch.randn(1, 3, 16, 16), "batch_size": 4}
    written = write(masked(Pictures()), tmp_path / "a", "pt2", {}, {**options, "dynamic_shapes": {"x": {3: "width"}}})
    assert "takes x [4, 3, 16, width]; free: width" in written.notes[0]
    with pytest.raises(SparsifyError, match="^save: batch_size fixes dimension 0, and dynamic_shapes lets it vary"):
        write(masked(Pictures()), tmp_path / "b", "pt2", {}, {**options, "dynamic_shapes": {"x": {0: "batch"}}})


class Tagger(nn.Module):
    """An encoder with padding that puts out every token."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **options)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=ids == 0))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("way", ["as it is", "built without", "set after"])
def test_a_padded_encoder_is_written_or_names_its_fast_path(way: str, tmp_path: Path) -> None:
    model = masked(Tagger(**({"enable_nested_tensor": False} if way == "built without" else {}))).eval()
    ids = torch.randint(1, 30, (2, 7))
    ids[0, 5:] = 0
    if way == "as it is":
        with pytest.raises(SparsifyError, match="^save: [^\n]*; encoder takes [^\n]* enable_nested_tensor=False"):
            sparsify.save(model, tmp_path / "a", format="pt2", example_input=ids)
        assert not list(tmp_path.iterdir())
        return
    model.encoder.use_nested_tensor = False
    sparsify.save(model, tmp_path / "a", format="pt2", example_input=ids)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "a").module()(ids), model(ids), atol=1e-5)


def test_a_size_that_the_file_takes_for_a_constant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * int(x.shape[1] == 4) + (0 if torch.compiler.is_exporting() else len(x))

    with pytest.raises(RunError, match="^save: pt2: its outputs differ"):
        sparsify.save(masked(Fixed()), tmp_path / "a", format="pt2", example_input=x(2))
