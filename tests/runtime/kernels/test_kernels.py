"""Every kernel against torch in double precision, for whatever shape torch takes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.runtime.compile import compile
from sparsify.runtime.engine import Engine
from sparsify.runtime.kernels.opcodes import Opcode
from sparsify.runtime.lowering import conv_linear
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.program.assemble import Segment
from sparsify.runtime.program.plan import Plan

QUICK = settings(max_examples=40, deadline=None)


class Calls(nn.Module):
    """A function of one input with the parameters that it needs."""

    def __init__(self, function: Callable[..., Tensor], *tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.tensors)


def plan_of(engine: Engine) -> Plan:
    return next(iter(engine._plans.values()))


def check(model: nn.Module, x: Tensor, threads: int = 1, calls: int = 0, loops: bool = False) -> Engine:
    """Hold the engine's outputs against float64's; all but `calls` operations must have kernels.

    With `loops` no code is generated, as where none can be run.
    """
    with pytest.MonkeyPatch.context() as during:
        if loops:
            during.setattr(conv_linear, "generates", lambda *_: False)
        engine = compile(model, x, threads=threads, tune=False)
    strategy = next(iter(engine.strategies.values()))
    assert strategy.kind != "torch", strategy.why
    parts = plan_of(engine).program.parts
    assert sum(not isinstance(part, Segment) for part in parts) == calls
    with torch.no_grad():
        expected = model.double().eval()(x.double())
    found = engine(x)
    assert found.shape == expected.shape
    largest = expected.abs().max().clamp_min(1e-30) if expected.numel() else torch.ones(())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=float(1e-5 * largest))
    return engine


def sparse(shape: tuple[int, ...], keep: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < keep)


@QUICK
@given(
    images=st.integers(1, 18),
    groups=st.integers(1, 3),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 6),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    keep=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    bias=st.booleans(),
    threads=st.integers(1, 2),
    loops=st.booleans(),
)
def test_convolutions_are_those_of_torch(
    images: int,
    groups: int,
    channels: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    keep: float,
    bias: bool,
    threads: int,
    loops: bool,
) -> None:
    reach = [dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1)]
    size = tuple(max(size[d], reach[d] - 2 * padding[d]) for d in (0, 1))  # type: ignore[assignment]
    layer = nn.Conv2d(groups * channels, groups * outputs, kernel, stride, padding, dilation, groups, bias)
    layer.weight.data = sparse(tuple(layer.weight.shape), keep)
    check(layer, sparse((images, groups * channels, *size), 1, 1), threads, loops=loops)


@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", [(2, 1), (1, 2), (5, 7), (4, 33)], ids=str)
def test_pixels_that_a_stride_keeps_are_copied_whatever_their_number(
    images: int, stride: int, size: tuple[int, int]
) -> None:
    check(nn.Conv2d(3, 4, 3, stride, 1), sparse((images, 3, *size), 1), threads=2)
    check(nn.Conv2d(3, 4, 1, stride), sparse((images, 3, *size), 1))


def test_a_max_pooling_keeps_nan_and_reads_nothing_beyond_a_row() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.MaxPool2d(3, 2, 1))
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    engine = check(model, sparse((1, 2, 6, 35), 1))
    x = torch.zeros(1, 2, 6, 35)
    x[0, 0, 2, 34] = x[0, 1, 5, 0] = float("nan")
    x[0, 0, 3, 0], x[0, 1, 0, 34] = float("inf"), -float("inf")
    model.float()  # it was compared in float64
    torch.testing.assert_close(engine(x), model(x), rtol=0, atol=0, equal_nan=True)


def test_inputs_of_a_single_number_need_not_lie_in_the_order_of_the_weights() -> None:
    check(nn.Conv2d(1, 1, (3, 1), (2, 1), (1, 0)), sparse((1, 1, 1, 1), 1))
    # Two weights for one place of the border.
    layer = nn.Conv2d(1, 1, (3, 2), 1, (0, 1), (1, 2))
    layer.weight.data = torch.tensor([[0.0, 2.0], [3.0, 0.0], [5.0, 0.0]]).view(1, 1, 3, 2)
    check(nn.Sequential(nn.Conv2d(1, 1, 1), layer), sparse((1, 1, 3, 1), 1))


@QUICK
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    keep=st.sampled_from([0.0, 0.1, 1.0]),
    threads=st.integers(1, 3),
)
def test_linear_layers_are_those_of_torch(rows: int, inputs: int, outputs: int, keep: float, threads: int) -> None:
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = sparse((outputs, inputs), keep)
    check(layer, sparse((rows, inputs), 1, 1), threads)


@QUICK
@given(
    images=st.sampled_from([1, 2, 3, 4, 8, 16, 17]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    size=st.tuples(st.integers(4, 11), st.integers(4, 40)),
    rounded_up=st.booleans(),
    counted=st.booleans(),
    kind=st.sampled_from(["max", "mean"]),
)
def test_poolings_are_those_of_torch(
    images: int,
    kernel: int,
    stride: int,
    padding: int,
    size: tuple[int, int],
    rounded_up: bool,
    counted: bool,
    kind: str,
) -> None:
    padding = min(padding, kernel // 2)
    if kind == "max":
        pool: nn.Module = nn.MaxPool2d(kernel, stride, padding, ceil_mode=rounded_up)
    else:
        pool = nn.AvgPool2d(kernel, stride, padding, rounded_up, counted)
    check(nn.Sequential(nn.Conv2d(2, 3, 1), pool), sparse((images, 2, *size), 1))


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": lambda x, v, w: F.relu(F.conv2d(x, v)),
    "clamp": lambda x, v, w: F.conv2d(x, v).clamp(-0.5, 0.25),
    "clamp from above": lambda x, v, w: F.conv2d(x, v).clamp(max=0.25),
    "clamp behind torch": lambda x, v, w: F.conv2d(x, v).clamp(min=0.1).cumsum(1).relu(),
    "relu6": lambda x, v, w: F.relu6(F.conv2d(x, v)),
    "sum": lambda x, v, w: F.conv2d(x, v) + F.conv2d(x, w),
    "sum and relu": lambda x, v, w: F.relu(F.conv2d(x, v) + F.conv2d(x, w)),
    "sum of itself": lambda x, v, w: (lambda y: y + y)(F.conv2d(x, v)),
    "sum of sums": lambda x, v, w: (lambda a, b: F.relu(a.relu() + b.relu()))(F.conv2d(x, v), F.conv2d(x, w)),
    "concatenation": lambda x, v, w: torch.cat([F.conv2d(x, v), F.conv2d(x, w).relu()], 1),
    "mean": lambda x, v, w: F.conv2d(x, v).mean((2, 3)),
    "mean that keeps its dimensions": lambda x, v, w: F.conv2d(x, v).mean((-1, -2), keepdim=True),
    "classifier of pixels": lambda x, v, w: F.linear(F.conv2d(x, v).flatten(1), v.view(-1)[:3, None].expand(3, 100)),
    "in place": lambda x, v, w: F.conv2d(x, v).mul_(2).relu_(),
}


@pytest.mark.parametrize("images", [1, 3, 16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_follows_a_convolution_is_done_with_it(name: str, images: int) -> None:
    weights = sparse((4, 2, 1, 1), 1), sparse((4, 2, 1, 1), 1, 1)
    function = FUNCTIONS[name]
    check(Calls(function, *weights), sparse((images, 2, 5, 5), 1, 2), calls=2 * (name == "clamp behind torch"))


@pytest.mark.parametrize("images", [1, 2])
def test_norms_are_folded_wherever_they_stand(images: int) -> None:
    def norm(count: int) -> nn.BatchNorm2d:
        made = nn.BatchNorm2d(count)
        made.running_mean.normal_()
        made.running_var.uniform_(0.5, 2)
        made.weight.data.normal_()
        made.bias.data.normal_()
        return made

    torch.manual_seed(0)
    one, two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 1)
    behind = nn.BatchNorm1d(2)
    behind.running_mean.fill_(3)
    layers = (one, norm(5), nn.ReLU(), norm(5), norm(5), nn.ReLU(), two, nn.Flatten(), nn.Linear(4 * 36, 2), behind)
    check(nn.Sequential(*layers).eval(), torch.randn(images, 3, 6, 6))


def test_a_number_that_is_none_goes_through_as_in_torch() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
    x = torch.ones(1, 1, 4, 4)
    engine = compile(model, x, threads=1, tune=False)
    x[0, 0, 0, 1] = torch.nan
    found = engine(x)
    assert torch.equal(found.isnan(), model(x).isnan())
    assert found.isnan().sum() == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_without_padding_may_say_so_in_a_word(stride: int) -> None:
    layer = nn.Conv2d(3, 6, (3, 2), stride, padding="valid", dilation=(1, 2))
    check(layer, torch.randn(2, 3, 7, 8))


def test_many_weights_are_done_in_tiles_and_the_rest_singly() -> None:
    layer = nn.Conv2d(3, 6, 3, padding=1)
    engine = check(layer, torch.randn(2, 3, 8, 8), loops=True)
    assert [step.opcode for step in plan_of(engine).instructions] == [
        Opcode.PACK,
        Opcode.CONVOLVE_TILES,
        Opcode.CONVOLVE,
        Opcode.UNPACK,
    ]


@pytest.mark.parametrize(("groups", "stride", "images"), [(1, 1, 16), (1, 2, 3), (2, 1, 1), (1, 1, 1)])
def test_many_input_channels_are_summed_in_chunks(groups: int, stride: int, images: int) -> None:
    layer = nn.Conv2d(192 * groups, 6 * groups, 3, stride, 1, groups=groups)
    layer.weight.data = sparse(tuple(layer.weight.shape), 0.25)
    follows = nn.Sequential(layer, nn.ReLU())
    engine = check(follows, sparse((images, 192 * groups, 7, 9), 1, 1), threads=2, loops=True)
    chunks = [
        step.rows.chunks
        for step in plan_of(engine).instructions
        if isinstance(step, Instruction) and step.rows is not None
    ]
    assert chunks[0] > 1


@pytest.mark.parametrize("keep", [0.1, 1.0])
@pytest.mark.parametrize("images", [1, 16])
@pytest.mark.parametrize("size", [(5, 5), (4, 8)])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("loops", [False, True])
def test_what_is_added_is_overwritten_only_if_nothing_else_reads_it(
    loops: bool, ahead: bool, size: tuple[int, int], images: int, keep: float
) -> None:
    def block(x: Tensor, one: Tensor, two: Tensor, three: Tensor) -> Tensor:
        begun = F.conv2d(x, one, padding=1)
        ended = F.relu(F.conv2d(F.conv2d(begun, two, padding=1).relu(), three) + begun)
        return ended + begun if ahead else ended

    weights = [sparse((64, count, k, k), keep, seed) for seed, (count, k) in enumerate([(3, 3), (64, 3), (64, 1)])]
    engine = check(Calls(block, *weights), sparse((images, 3, *size), 1, 5), threads=2, loops=loops)
    sums = [step for step in plan_of(engine).instructions if isinstance(step, Instruction) and len(step.reads) > 1]
    in_place = [step.reads[1] == step.writes for step in sums if step.rows is not None]
    assert in_place == [not ahead] * len(in_place) != []


def test_a_layer_that_adds_its_own_input_does_not_overwrite_it() -> None:
    model = Calls(
        lambda x, one, two: F.conv2d(F.conv2d(x, one), two) + F.conv2d(x, one), *[sparse((4, 4, 1, 1), 1)] * 2
    )
    check(model, sparse((2, 4, 6, 6), 1, 1))

    def recurrent(x: Tensor, weight: Tensor) -> Tensor:
        y = F.conv2d(x, weight)
        return F.conv2d(y, weight) + y

    engine = check(Calls(recurrent, sparse((4, 4, 1, 1), 1)), sparse((2, 4, 6, 6), 1, 1))
    last = [step for step in plan_of(engine).instructions if isinstance(step, Instruction) and step.rows is not None][
        -1
    ]
    assert last.reads[0] == last.reads[1] != last.writes


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (3, 4), (8, 8), (7, 7), (14, 14), (5, 20), (1, 9)])
@pytest.mark.parametrize("images", [1, 16, 17])
@pytest.mark.parametrize("keep", [0.3, 1])
def test_tiles_of_every_shape_cover_the_output(keep: float, images: int, size: tuple[int, int]) -> None:
    layer = nn.Conv2d(5, 4, 3, padding=1)
    layer.weight.data = sparse(tuple(layer.weight.shape), keep)
    check(layer, sparse((images, 5, *size), 1, 1))


def test_a_matrix_seen_as_images_gets_the_border_that_a_convolution_reads() -> None:
    torch.manual_seed(0)
    layers = nn.Linear(4, 4, bias=False), nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 3, padding=1)
    for images in (1, 2, 17):
        check(nn.Sequential(*layers).float(), torch.randn(images, 4))


def test_inputs_may_have_other_strides_than_the_example() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 2))
    x = torch.randn(2, 3, 4, 5)
    engine = compile(model, x, threads=1, tune=False)
    expected = engine(x)
    torch.testing.assert_close(engine(x.contiguous(memory_format=torch.channels_last)), expected)
    torch.testing.assert_close(engine(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)


def test_a_view_behind_a_transposition_is_torch_s_on_what_is_contiguous_now() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = x.flatten(2).transpose(1, 2)
            y = y + self.layer(self.norm(y))
            return y.transpose(1, 2).reshape(x.shape).flatten(1)

    model, x = Tokens().eval(), torch.randn(2, 4, 3, 3)
    engine = compile(model, x, threads=1, tune=False)
    assert next(iter(engine.strategies.values())).kind != "torch"
    torch.testing.assert_close(engine(x), model(x))


def test_a_norm_of_equal_channels_is_its_bias() -> None:
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)).eval()
    engine = compile(model, torch.randn(4, 8, 3), threads=1, tune=False)
    x = (torch.rand(4, 8, 1) * 100).expand(4, 8, 3).contiguous()
    torch.testing.assert_close(engine(x), model(x), rtol=0, atol=1e-6)
