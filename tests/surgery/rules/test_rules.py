"""Every rule by a small network whose groups were worked out by hand.

A letter is a group, a dash a channel that never goes: {"1.weight": ("abcd", "")} reads: the four rows are four
groups, the columns stay. Which letters are used does not matter, only which are the same.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.recording import broadcast_forms as axes
from sparsify.surgery.recording.recorder import record
from sparsify.surgery.rules.table import RULES

Case = tuple[nn.Module, Any, Mapping[str, tuple[str, ...]]]
CASES: dict[str, Callable[[], Case]] = {}


class Forward(nn.Module):
    """The modules that are given by name, and a forward that is a function of it and the input."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    CASES[function.__name__] = function
    return function


def image(channels: int = 2, size: int = 6) -> Tensor:
    return torch.randn(2, channels, size, size)


def conv(inputs: int, outputs: int, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, bias=False, **options)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def between(operation: Callable[[Tensor], Tensor], x: Tensor, middle: str, inputs: str | None = None) -> Case:
    """Two pointwise convolutions with an operation between them; `middle` labels the first's rows."""
    inputs = middle if inputs is None else inputs
    model = Forward(lambda m, x: m.last(operation(m.first(x))), first=conv(2, len(middle)), last=conv(len(inputs), 2))
    return model, x, {"first.weight": (middle, ""), "last.weight": ("", inputs)}


def vectors(operation: Callable[[Tensor], Tensor], middle: str, inputs: str | None = None) -> Case:
    inputs = middle if inputs is None else inputs
    first, last = linear(3, len(middle)), linear(len(inputs), 2)
    model = Forward(lambda m, x: m.last(operation(m.first(x))), first=first, last=last)
    return model, torch.randn(5, 3), {"first.weight": (middle, ""), "last.weight": ("", inputs)}


@case
def linear_with_bias() -> Case:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, torch.randn(5, 3), {"0.weight": ("abcd", ""), "0.bias": ("abcd",), "2.weight": ("", "abcd")}


@case
def linear_over_three_dimensions_adds_its_bias_apart() -> Case:
    model = Forward(lambda m, x: m[1](m[0](x.transpose(0, 1))), a=nn.Linear(3, 4), b=linear(4, 2))
    model.function = lambda m, x: m.b(m.a(x.transpose(0, 1)))
    return model, torch.randn(5, 6, 3), {"a.weight": ("abcd", ""), "a.bias": ("abcd",), "b.weight": ("", "abcd")}


@case
def hidden_units_of_experts_go_from_every_expert() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        ends = torch.bincount((x.new_ones(len(x)).cumsum(0) > 4).long(), minlength=2).cumsum(0).int()
        gate, up = torch._grouped_mm(x, m.enter.transpose(1, 2), offs=ends).chunk(2, -1)
        return torch._grouped_mm(gate.relu() * up, m.leave.transpose(1, 2), offs=ends)

    enter, leave = nn.Parameter(torch.randn(2, 16, 16)), nn.Parameter(torch.randn(2, 16, 8))
    return (
        Forward(forward, enter=enter, leave=leave),
        torch.randn(8, 16),
        {"enter": ("", "abcdefgh" * 2, ""), "leave": ("", "", "abcdefgh")},
    )


@case
def residual_addition_ties() -> Case:
    model = Forward(lambda m, x: m.c(m.a(x).relu() + m.b(x)), a=conv(2, 3), b=conv(2, 3), c=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "b.weight": ("abc", ""), "c.weight": ("", "abc")}


@case
def a_skip_around_a_layer_ties_input_and_output() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.c(x + m.b(x))

    model = Forward(forward, a=conv(2, 3), b=conv(3, 3), c=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "b.weight": ("abc", "abc"), "c.weight": ("", "abc")}


@case
def product_of_two_branches_ties() -> Case:
    model = Forward(lambda m, x: m.c(m.a(x) * m.b(x)), a=conv(2, 3), b=conv(2, 3), c=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "b.weight": ("abc", ""), "c.weight": ("", "abc")}


@case
def layer_scale() -> Case:
    scale = nn.Parameter(torch.ones(3, 1, 1))
    model = Forward(lambda m, x: m.b(m.a(x) * m.scale), a=conv(2, 3), scale=scale, b=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "scale": ("abc", "", ""), "b.weight": ("", "abc")}


@case
def a_gate_of_one_channel_is_broadcast() -> Case:
    model = Forward(lambda m, x: m.c(m.a(x) * m.b(x).sigmoid()), a=conv(2, 3), b=conv(2, 1), c=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "c.weight": ("", "abc")}


@case
def concatenation_lays_side_by_side() -> Case:
    model = Forward(lambda m, x: m.c(torch.cat([m.a(x), m.b(x), x], 1)), a=conv(2, 2), b=conv(2, 3), c=conv(7, 2))
    return model, image(), {"a.weight": ("ab", ""), "b.weight": ("cde", ""), "c.weight": ("", "abcde--")}


@case
def concatenation_with_an_empty_tensor() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.b(torch.cat([torch.empty(0), m.a(x)], 1))

    model = Forward(forward, a=conv(2, 3), b=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "b.weight": ("", "abc")}


@case
def stack_and_unbind() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = torch.stack([m.a(x), m.b(x)], 1).unbind(1)
        return m.c(one) + m.d(two)

    model = Forward(forward, a=conv(2, 2), b=conv(2, 2), c=conv(2, 2), d=conv(2, 2))
    tied = {"a.weight": ("ab", ""), "b.weight": ("ab", ""), "c.weight": ("", "ab"), "d.weight": ("", "ab")}
    return model, image(), tied


@case
def split_by_sizes() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = m.a(x).split([1, 3], 1)
        return m.b(one) + m.c(two)

    model = Forward(forward, a=conv(2, 4), b=conv(1, 2), c=conv(3, 2))
    return model, image(), {"a.weight": ("-abc", ""), "c.weight": ("", "abc")}


@case
def chunks_stay_of_one_size() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = m.a(x).chunk(2, 1)
        return m.b(one) + m.c(two)

    model = Forward(forward, a=conv(2, 6), b=conv(3, 2), c=conv(3, 2))
    return model, image(), {"a.weight": ("abcabc", ""), "b.weight": ("", "abc"), "c.weight": ("", "abc")}


@case
def unsafe_chunks() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        one, two = m.a(x).unsafe_chunk(2, 1)
        one, three = one.unsafe_split(2, 1)[0], two
        return m.b(one) + m.c(three)

    model = Forward(forward, a=conv(2, 4), b=conv(2, 2), c=conv(2, 2))
    return model, image(), {"a.weight": ("abab", ""), "b.weight": ("", "ab"), "c.weight": ("", "ab")}


@case
def slices() -> Case:
    model = Forward(lambda m, x: m.b(m.a(x)[:, 1:]), a=conv(2, 4), b=conv(3, 2))
    return model, image(), {"a.weight": ("abcd", ""), "b.weight": ("", "bcd")}


@case
def gated_linear_unit() -> Case:
    return between(lambda x: F.glu(x, 1), image(), "ababab"[:2] * 2, "ab")


@case
def depthwise() -> Case:
    model = nn.Sequential(conv(2, 3), conv(3, 3, 3, groups=3), conv(3, 2))
    return model, image(), {"0.weight": ("abc", ""), "1.weight": ("abc", ""), "2.weight": ("", "abc")}


@case
def depth_multiplier() -> Case:
    model = nn.Sequential(conv(2, 3), conv(3, 6, 3, groups=3), conv(6, 2))
    return model, image(), {"0.weight": ("abc", ""), "1.weight": ("aabbcc", ""), "2.weight": ("", "aabbcc")}


@case
def transposed() -> Case:
    model = nn.Sequential(conv(2, 3), nn.ConvTranspose2d(3, 4, 2), conv(4, 2))
    rows: dict[str, tuple[str, ...]] = {"1.weight": ("abc", "defg"), "1.bias": ("defg",), "2.weight": ("", "defg")}
    return model, image(), {"0.weight": ("abc", ""), **rows}


@case
def transposed_depthwise() -> Case:
    model = nn.Sequential(conv(2, 3), nn.ConvTranspose2d(3, 3, 2, groups=3, bias=False), conv(3, 2))
    return model, image(), {"0.weight": ("abc", ""), "1.weight": ("abc", ""), "2.weight": ("", "abc")}


@case
def convolutions_in_one_and_three_dimensions() -> Case:
    model = Forward(
        lambda m, x: m.d(m.c(m.b(m.a(x).flatten(2))).unflatten(2, (3, 3, 3))),
        a=nn.Conv3d(2, 3, 1, bias=False),
        b=nn.Conv1d(3, 4, 1, bias=False),
        c=nn.Conv1d(4, 5, 1, bias=False),
        d=nn.Conv3d(5, 2, 2, bias=False),
    )
    expected = {"a.weight": ("abc", ""), "b.weight": ("defg", "abc"), "c.weight": ("hijkl", "defg")}
    return model, torch.randn(2, 2, 3, 3, 3), {**expected, "d.weight": ("", "hijkl")}


@case
def batch_norm() -> Case:
    model = nn.Sequential(conv(2, 3), nn.BatchNorm2d(3), nn.ReLU(), conv(3, 2))
    along: dict[str, tuple[str, ...]]
    along = dict.fromkeys(("1.weight", "1.bias", "1.running_mean", "1.running_var"), ("abc",))
    return model, image(), {"0.weight": ("abc", ""), **along, "3.weight": ("", "abc")}


@case
def group_norm_keeps_whole_groups() -> Case:
    model = nn.Sequential(conv(2, 6), nn.GroupNorm(3, 6), conv(6, 2))
    along = dict.fromkeys(("1.weight", "1.bias"), ("aabbcc",))
    return model, image(), {"0.weight": ("aabbcc", ""), **along, "2.weight": ("", "aabbcc")}


@case
def layer_norm_keeps_its_channels() -> Case:
    model = nn.Sequential(linear(3, 4), nn.LayerNorm(4), linear(4, 4), nn.ReLU(), linear(4, 2))
    return model, torch.randn(5, 3), {"2.weight": ("abcd", ""), "4.weight": ("", "abcd")}


@case
def root_mean_square_norm_keeps_its_channels() -> Case:
    model = nn.Sequential(linear(3, 4), nn.RMSNorm(4), linear(4, 4), nn.ReLU(), linear(4, 2))
    return model, torch.randn(5, 3), {"2.weight": ("abcd", ""), "4.weight": ("", "abcd")}


@case
def instance_norm() -> Case:
    model = nn.Sequential(conv(2, 3), nn.InstanceNorm2d(3, affine=True), nn.ReLU(), conv(3, 2))
    along = dict.fromkeys(("1.weight", "1.bias"), ("abc",))
    return model, image(), {"0.weight": ("abc", ""), **along, "3.weight": ("", "abc")}


@case
def weight_norm_makes_nan_of_zeros() -> Case:
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(linear(3, 4)), nn.ReLU(), linear(4, 2))
    return model, torch.randn(5, 3), {}


@case
def prelu_per_channel() -> Case:
    model = nn.Sequential(conv(2, 3), nn.PReLU(3), conv(3, 2))
    return model, image(), {"0.weight": ("abc", ""), "1.weight": ("abc",), "2.weight": ("", "abc")}


@case
def sigmoid_before_a_pointwise_layer_can_be_folded_into_its_bias() -> Case:
    return between(torch.sigmoid, image(), "abc")


@case
def sigmoid_before_a_border_of_zeros_can_not() -> Case:
    model = Forward(lambda m, x: m.b(m.a(x).sigmoid()), a=conv(2, 3), b=conv(3, 2, 3, padding=1))
    return model, image(), {}


@case
def squeeze_excitation() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.d(x * m.c(m.b(x.mean((2, 3), keepdim=True)).relu()).sigmoid())

    model = Forward(forward, a=conv(2, 4), b=conv(4, 3), c=conv(3, 4), d=conv(4, 2))
    inner = {"b.weight": ("efg", "abcd"), "c.weight": ("abcd", "efg")}
    return model, image(), {"a.weight": ("abcd", ""), **inner, "d.weight": ("", "abcd")}


@case
def drop_path_of_an_evaluated_model() -> Case:
    return between(lambda x: F.dropout(x, 0.5, False), image(), "abc")


@case
def pooling() -> Case:
    def forward(x: Tensor) -> Tensor:
        x = F.max_pool2d(F.avg_pool2d(x, 2, 1), 2, 1)
        x = F.adaptive_max_pool2d(F.adaptive_avg_pool2d(x, 3), 2)
        return x + x.amax((2, 3), keepdim=True) + x.amin((2, 3), keepdim=True)

    return between(forward, image(), "abc")


@case
def pooling_in_one_and_three_dimensions() -> Case:
    def forward(x: Tensor) -> Tensor:
        y = F.avg_pool1d(F.max_pool1d(x.flatten(2), 2), 2)
        y = F.adaptive_max_pool1d(F.adaptive_avg_pool1d(y, 4), 2)
        z = F.avg_pool3d(F.max_pool3d(x[:, :, None].expand(-1, -1, 3, -1, -1), 2, 1), 2, 1)
        z = F.adaptive_max_pool3d(F.adaptive_avg_pool3d(z, 2), 1)
        return y[..., None] + z[:, :, 0]

    return between(forward, image(), "abc")


@case
def resizing() -> Case:
    def forward(x: Tensor) -> Tensor:
        for mode in ("nearest", "bilinear", "bicubic", "nearest-exact"):
            x = F.interpolate(x, size=5, mode=mode)
        for mode in ("bilinear", "bicubic"):
            x = F.interpolate(x, size=4, mode=mode, antialias=True)
        y = F.interpolate(F.interpolate(x.flatten(2), size=8, mode="nearest"), size=16, mode="linear")
        z = F.interpolate(
            F.interpolate(x[:, :, None], size=(1, 4, 4), mode="nearest"), size=(1, 4, 4), mode="trilinear"
        )
        return x + y.unflatten(2, (4, 4)) + z[:, :, 0]

    return between(forward, image(), "abc")


@case
def padding_of_space() -> Case:
    def forward(x: Tensor) -> Tensor:
        x = F.pad(F.pad(F.pad(x, (1, 1)), (1, 1, 1, 1), mode="reflect"), (0, 1, 0, 1), mode="replicate")
        y = F.pad(F.pad(x.flatten(2), (1, 1), mode="reflect"), (1, 0), mode="replicate")
        z = F.pad(F.pad(x[:, :, None].expand(-1, -1, 2, -1, -1), [1] * 6, mode="reflect"), [1] * 6, mode="replicate")
        return x + y.mean(2)[..., None, None] + z.sum(2).mean((2, 3), keepdim=True)

    return between(forward, image(), "abc")


@case
def padding_of_channels() -> Case:
    return between(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), image(), "abc", "-abc--")


@case
def padding_with_ones() -> Case:
    model = Forward(lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 2, 0), value=1.0)), a=conv(2, 3), b=conv(5, 2))
    return model, image(), {"a.weight": ("abc", ""), "b.weight": ("", "--abc")}


@case
def cutting_by_negative_padding() -> Case:
    return between(lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), image(), "abc", "bc")


@case
def sampling_on_a_grid() -> Case:
    grid = torch.rand(2, 3, 3, 2)
    return between(lambda x: F.grid_sample(x, grid, align_corners=False), image(), "abc")


@case
def flattening_repeats_a_channel() -> Case:
    model = nn.Sequential(conv(2, 2), nn.Flatten(), linear(8, 2))
    return model, image(size=2), {"0.weight": ("ab", ""), "2.weight": ("", "aaaabbbb")}


@case
def moving_dimensions() -> Case:
    def forward(x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).transpose(1, 2).flatten(1, 2)[:, None].squeeze(1).movedim(2, 1)
        x = x.unflatten(2, (6, 6)).flip(3).flip(1).flip(1).contiguous().detach()
        return x.repeat(1, 1, 2, 1).narrow(2, 0, 6).double().float().clone().view_as(x).select(2, 0)[:, :, None]

    return between(forward, image(), "abc")


@case
def moving_dimensions_in_place() -> Case:
    def forward(x: Tensor) -> Tensor:
        return x.clone().transpose_(1, 3).unsqueeze_(0).squeeze_(0).transpose_(1, 3)

    return between(forward, image(), "abc")


@case
def turned_matrices_in_place() -> Case:
    return vectors(lambda x: x.clone().t_().clone().t_(), "abcd")


@case
def flipped_channels() -> Case:
    return between(lambda x: x.flip(1), image(), "abc", "cba")


@case
def rolled_channels() -> Case:
    return between(lambda x: x.roll(1, 1), image(), "abc", "cab")


@case
def rolled_space() -> Case:
    return between(lambda x: x.roll((1, 2), (2, 3)), image(), "abc")


@case
def rolled_as_one_row() -> Case:
    """By six, a row of the image: entries of every channel go to the next one: all are one group, which has to stay."""
    return between(lambda x: x.roll(6), image(), "---", "---")


@case
def repeated_channels() -> Case:
    return between(lambda x: x.repeat(1, 2, 1, 1), image(), "abc", "abcabc")


@case
def repeated_in_place_of_each() -> Case:
    return between(lambda x: x.repeat_interleave(2, 1), image(), "abc", "aabbcc")


@case
def indexed_channels() -> Case:
    return between(lambda x: x[:, torch.tensor([2, 0])], image(), "abc", "ca")


@case
def selected_channels() -> Case:
    return between(lambda x: x.index_select(1, torch.tensor([1, 0, 1])), image(), "ab", "bab")


@case
def indexed_by_what_the_input_says() -> Case:
    def forward(x: Tensor) -> Tensor:
        return x[:, x.mean((0, 2, 3)).argsort()]

    return between(forward, image(), "---", "---")


@case
def places_chosen_by_the_input() -> Case:
    def forward(x: Tensor) -> Tensor:
        rows, channels = x.flatten(2).transpose(1, 2), 3
        best = rows.sum(2).topk(2, 1)[1]
        y = rows.gather(1, best[..., None].expand(-1, -1, channels)) + rows[torch.arange(len(x))[:, None], best]
        y = y + torch.take_along_dim(rows, best[..., None], 1) + rows.index_select(1, best[0])
        y = y.sort(1)[0] + y.topk(2, 1)[0] + y.cummax(1)[0] + y * y.logcumsumexp(1)
        return y.transpose(1, 2)[..., None]

    return between(forward, image(), "abc")


@case
def written_to_places_chosen_by_the_input() -> Case:
    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        best = rows.sum(2).argsort(1)
        index = best[..., None].expand(-1, -1, 3)
        y = torch.zeros(2, 36, 3).scatter(1, index, rows) + rows.scatter_add(1, index, rows)
        y = y + rows.clone().index_put_((torch.arange(2)[:, None, None], best[..., None][:, :, :1]), rows[:, :, None])
        return y.transpose(1, 2).unflatten(2, (6, 6))

    return between(forward, image(), "abc")


@case
def written_to_fixed_places() -> Case:
    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(2).clone()
        rows[:, :, torch.tensor([3, 4])] = rows[:, :, :2]
        y = rows.index_fill(2, torch.tensor([0]), 0.0) + rows.index_add(2, torch.tensor([1, 2]), rows[:, :, 5:7])
        y = y + rows.index_copy(2, torch.tensor([1, 2]), rows[:, :, 5:7]) + y.unflatten(2, (6, 6)).tril().flatten(2)
        return y.unflatten(2, (6, 6)).rot90(1, (2, 3))

    return between(forward, image(), "abc")


@case
def chosen_along_space() -> Case:
    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(2)
        y = rows.kthvalue(2, 2, keepdim=True)[0] + rows.mode(2, True)[0] + rows.median(2, True)[0] + rows.cummin(2)[0]
        y = y * (rows.argmax(2).unsqueeze(2) + rows.argmin(2, keepdim=True))
        y = y + torch.fft.irfft(torch.fft.fft(torch.fft.fft(rows, dim=2))[:, :, :19], n=36, dim=2)
        y = y + torch.fft.rfft(rows, dim=2).abs().sum(2, keepdim=True)
        y = y[..., None].expand(-1, -1, -1, 3)
        return torch.linalg.cross(y, y.triu()).sum(3).unflatten(2, (6, 6))

    return between(forward, image(), "abc")


@case
def written_in_place_along_space() -> Case:
    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(2).clone()
        first = torch.zeros(2, 3, 1, dtype=torch.long)
        rows = rows.scatter_(2, first, rows[:, :, :1]).scatter_add_(2, first, rows[:, :, :1].clone())
        rows = rows.scatter_reduce(2, first, rows[:, :, :1], "amax").scatter_reduce_(
            2, first, rows[:, :, :1].clone(), "sum"
        )
        rows = rows.index_fill_(2, first[0, 0], 0).index_add_(2, first[0, 0], rows[:, :, :1].clone())
        rows = torch.ops.aten.index_put(rows, [None, None, first[0, 0]], rows[:, :, :1])
        rows = rows.index_copy_(2, first[0, 0], rows[:, :, 1:2].clone())
        return rows.unflatten(2, (6, 6)).tril_().triu_()

    return between(forward, image(), "abc")


@case
def chosen_by_a_mask() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(y[y.sum(1) > -9])

    model = Forward(forward, first=linear(3, 4), last=linear(4, 2))
    return model, torch.randn(5, 3), {"first.weight": ("abcd", ""), "last.weight": ("", "abcd")}


@case
def channels_chosen_by_the_input_stay() -> Case:
    return between(lambda x: x.gather(1, x.argsort(1)), image(), "---", "---")


@case
def complex_numbers() -> Case:
    """Channels go in pairs."""

    def forward(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.permute(0, 2, 3, 1).unflatten(3, (2, 2)).contiguous())
        turned = torch.view_as_real(pairs * torch.polar(torch.ones(6, 1), torch.ones(6, 1)))
        return turned.flatten(3).permute(0, 3, 1, 2)

    return between(forward, image(), "aabb")


@case
def shuffled_channels() -> Case:
    return between(lambda x: F.channel_shuffle(x, 2), image(), "abab", "aabb")  # as many must go from each half


@case
def shuffled_pixels() -> Case:
    return between(lambda x: F.pixel_shuffle(x, 2), image(), "aaaabbbb", "ab")


@case
def unshuffled_pixels() -> Case:
    return between(lambda x: F.pixel_unshuffle(x, 2), image(), "ab", "aaaabbbb")


@case
def patches() -> Case:
    model = Forward(
        lambda m, x: m.last(F.fold(F.unfold(m.first(x), 2, stride=2), 6, 2, stride=2)),
        first=conv(2, 3),
        last=conv(3, 2),
    )
    return model, image(), {"first.weight": ("abc", ""), "last.weight": ("", "abc")}


@case
def windows() -> Case:
    return between(lambda x: x.unfold(2, 2, 2).sum(-1), image(), "abc")


@case
def a_diagonal() -> Case:
    return between(lambda x: x.diagonal(dim1=2, dim2=3)[..., None], image(), "abc")


@case
def sums_and_norms_over_space() -> Case:
    def forward(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 2, keepdim=True)
        y = x.sum(2, keepdim=True) + x.norm(dim=2, keepdim=True) + variance + mean + x.std(2, keepdim=True)
        return y * x.var(2, keepdim=True) * x.max(2, keepdim=True)[0] * x.min(2, keepdim=True).values

    return between(forward, image(), "abc")


@case
def means_over_channels_keep_them() -> Case:
    return between(lambda x: x * x.mean(1, keepdim=True), image(), "---", "---")


@case
def sums_over_channels_do_not() -> Case:
    return between(lambda x: x * x.sum(1, keepdim=True), image(), "abc")


@case
def smallest_power_norm_keeps_channels() -> Case:
    norm = torch.linalg.vector_norm
    return between(lambda x: x * norm(x, float("-inf"), 1, keepdim=True), image(), "---", "---")


@case
def softmax_over_space() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.b(x).flatten(2)
        y = F.softmax(y, 2) + F.log_softmax(y, 2) + y.cumsum(2) + (y + 1).cumprod(2) + y.logsumexp(2, keepdim=True)
        return m.c(m.a(x) * y.view(2, 3, 6, 6))

    model = Forward(forward, a=conv(2, 3), b=conv(2, 3), c=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "b.weight": ("abc", ""), "c.weight": ("", "abc")}


@case
def softmax_over_channels_keeps_them() -> Case:
    model = Forward(lambda m, x: m.c(m.a(x) * F.softmax(m.b(x), 1)), a=conv(2, 3), b=conv(2, 3), c=conv(3, 2))
    return model, image(), {}


@case
def like_another() -> Case:
    def forward(x: Tensor) -> Tensor:
        return (
            x + torch.zeros_like(x) + x * torch.ones_like(x) + x * torch.full_like(x, 2) + torch.empty_like(x).copy_(x)
        )

    return between(forward, image(), "abc")


@case
def embedding_and_tied_head() -> Case:
    model = Forward(
        lambda m, i: F.linear(m.head(m.table(i)), m.table.weight), table=nn.Embedding(5, 4), head=linear(4, 4)
    )
    return model, torch.tensor([[1, 2]]), {"table.weight": ("", "abcd"), "head.weight": ("abcd", "abcd")}


@case
def embedding() -> Case:
    model = Forward(lambda m, i: m.last(m.table(i)), table=nn.Embedding(5, 4), last=linear(4, 2))
    return model, torch.tensor([[1, 2]]), {"table.weight": ("", "abcd"), "last.weight": ("", "abcd")}


@case
def bags_of_embeddings() -> Case:
    frozen = nn.EmbeddingBag(5, 4).requires_grad_(False)
    model = Forward(lambda m, i: m.last(m.table(i) * m.frozen(i)), table=nn.EmbeddingBag(5, 4), frozen=frozen)
    model.last = linear(4, 2)
    columns = ("", "abcd")
    return model, torch.tensor([[1, 2]]), {"table.weight": columns, "frozen.weight": columns, "last.weight": columns}


@case
def one_hot_rows_of_a_table() -> Case:
    def forward(m: Any, i: Tensor) -> Tensor:
        return m.last(F.one_hot(i, 5).to(m.table.dtype) @ m.table)

    model = Forward(forward, table=nn.Parameter(torch.randn(5, 4)), last=linear(4, 2))
    return model, torch.tensor([[1, 2]]), {"table": ("", "abcd"), "last.weight": ("", "abcd")}


@case
def tokens_in_front_of_a_sequence() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.cat([m.token.expand(2, -1, -1), m.first(x)], 1))

    token = nn.Parameter(torch.randn(1, 1, 4))
    model = Forward(forward, first=linear(3, 4), token=token, last=linear(4, 2))
    tied = {"first.weight": ("abcd", ""), "token": ("", "", "abcd"), "last.weight": ("", "abcd")}
    return model, torch.randn(2, 5, 3), tied


@case
def a_token_in_place_of_what_is_masked() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.where(x[..., :1] > 0, m.first(x), m.token))

    model = Forward(forward, first=linear(3, 4), token=nn.Parameter(torch.randn(4)), last=linear(4, 2))
    tied = {"first.weight": ("abcd", ""), "token": ("abcd",), "last.weight": ("", "abcd")}
    return model, torch.randn(2, 5, 3), tied


@case
def a_mask_of_padding_fills_with_zeros() -> Case:
    return vectors(lambda x: x.masked_fill(x[:, :1] > 0, 0.0), "-abc", "-abc")


@case
def standardised_over_space() -> Case:
    def forward(x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, (2, 3), keepdim=True)
        return (x - mean) / (deviation + 1)

    return between(forward, image(), "abc")


@case
def multiplied_by_whether_any_or_all_hold() -> Case:
    return between(lambda x: x * (x != 0).any(3, keepdim=True) * (x == x).all(3, keepdim=True), image(), "abc")


@case
def scaled_and_shifted_in_one_operation() -> Case:
    model = Forward(lambda m, x: m.d(torch.addcmul(m.a(x), m.b(x), m.c(x))), d=linear(4, 2))
    model.a, model.b, model.c = (linear(3, 4) for _ in range(3))
    rows = dict.fromkeys(("a.weight", "b.weight", "c.weight"), ("abcd", ""))
    return model, torch.randn(5, 3), {**rows, "d.weight": ("", "abcd")}


@case
def complex_numbers_of_two_layers() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.view_as_real(torch.complex(m.a(x), m.b(x))).flatten(-2))

    model = Forward(forward, a=linear(3, 3), b=linear(3, 3), last=linear(6, 2))
    return model, torch.randn(5, 3), {"a.weight": ("abc", ""), "b.weight": ("abc", ""), "last.weight": ("", "aabbcc")}


@case
def deformable_convolution() -> Case:
    model = Forward(
        lambda m, x: m.last(m.deformable(m.first(x), m.offsets(x), m.weights(x))),
        first=conv(2, 4),
        offsets=conv(2, 18, 3, padding=1),
        weights=conv(2, 9, 3, padding=1),
        deformable=DeformConv2d(4, 3, 3, padding=1, bias=False),
        last=conv(3, 2),
    )
    return (
        model,
        image(),
        {"first.weight": ("abcd", ""), "deformable.weight": ("efg", "abcd"), "last.weight": ("", "efg")},
    )


def heads(m: Any, x: Tensor) -> Iterator[Tensor]:
    for layer in (m.q, m.k, m.v):
        yield layer(x).view(2, 5, 2, 3).transpose(1, 2)


def attention(function: Callable[[Any, Tensor], Tensor], rows: str) -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.o(function(m, x).transpose(1, 2).reshape(2, 5, -1))

    model = Forward(forward, q=linear(4, 6), k=linear(4, 6), v=linear(4, 6), o=linear(6, 4))
    expected = dict.fromkeys(("q.weight", "k.weight", "v.weight"), (rows, ""))
    return model, torch.randn(2, 5, 4), {**expected, "o.weight": ("", rows)}


@case
def fused_attention_keeps_whole_heads() -> Case:
    return attention(lambda m, x: F.scaled_dot_product_attention(*heads(m, x)), "aaabbb")


@case
def fused_attention_with_a_mask() -> Case:
    mask = torch.ones(5, 5).tril().bool()

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = heads(m, x)
        return F.scaled_dot_product_attention(q, k, v, mask)

    return attention(forward, "aaabbb")


@case
def attention_by_products() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = heads(m, x)
        return F.softmax((q @ k.transpose(2, 3)).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9), -1) @ v

    return attention(forward, "aaabbb")


@case
def attention_added_up_in_batches() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (t.flatten(0, 1) for t in heads(m, x))
        scores = torch.baddbmm(torch.zeros(1, 5, 5), q, k.transpose(1, 2))
        return torch.bmm(F.softmax(scores, -1), v).unflatten(0, (2, 2))

    return attention(forward, "aaabbb")


@case
def multi_head_attention() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(m.a(x, x, x, need_weights=False)[0])

    model = Forward(forward, a=nn.MultiheadAttention(4, 2, bias=False, batch_first=True), last=linear(4, 2))
    return model, torch.randn(2, 5, 4), {"a.out_proj.weight": ("abcd", ""), "last.weight": ("", "abcd")}


@case
def products_with_vectors() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return torch.addmv(torch.zeros(5), y, m.w) + torch.mv(y, m.w)

    model = Forward(forward, a=linear(3, 4), w=nn.Parameter(torch.ones(4)))
    return model, torch.randn(5, 3), {"a.weight": ("abcd", ""), "w": ("abcd",)}


@case
def state_of_zeros_in_a_size_that_an_attribute_holds() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), m.width)
        for _ in range(2):
            state = (m.a(x) + m.b(state)).tanh()
        return m.c(state)

    model = Forward(forward, a=linear(3, 4), b=linear(4, 4), c=linear(4, 2), width=4)
    return model, torch.randn(5, 3), {"a.weight": ("abcd", ""), "b.weight": ("abcd", "abcd"), "c.weight": ("", "abcd")}


@case
def tensors_of_one_number_go_with_what_they_meet() -> Case:
    def forward(x: Tensor) -> Tensor:
        sizes = x.shape
        x = x * torch.ones(sizes) + torch.full(sizes, 2.0) * x + x.new_zeros(sizes) * x.new_ones(sizes)
        return x * x.new_full(sizes, 3.0)

    return between(forward, image(), "abc")


@case
def tensors_of_one_number_after_moves() -> Case:
    def forward(x: Tensor) -> Tensor:
        state = torch.zeros(1, 3).double().float().t()[None, :, :, None].expand(len(x), -1, -1, 1)
        return x * (x + state)

    return between(forward, image(), "abc")


@case
def one_entry_stretched_to_the_channels() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.c(y * m.b(x).sigmoid().expand(-1, 3, -1, -1).clone() * m.b(x).repeat(1, 3, 1, 1))

    model = Forward(forward, a=conv(2, 3), b=conv(2, 1), c=conv(3, 2))
    return model, image(), {"a.weight": ("abc", ""), "c.weight": ("", "abc")}


@case
def written_in_place() -> Case:
    return between(lambda x: x.relu_().mul_(2).add_(0).clamp_(0, 6), image(), "abc")


@case
def unknown_operation() -> Case:
    return between(lambda x: x.renorm(2, 0, 1.0), image(), "---", "---")


@case
def the_logarithm_of_a_sigmoid_of_zeros_is_a_constant() -> Case:
    return between(F.logsigmoid, image(), "abcd")


@case
def channels_padded_with_their_other_end_go() -> Case:
    around = conv(3, 3, 3, padding=1, groups=3, padding_mode="circular")
    first, last = conv(2, 3), conv(3, 2)
    model = Forward(lambda m, x: m.last(m.around(F.pad(m.first(x), (-1, 2, 0, 1), "circular"))), first=first, last=last)
    model.around = around
    return model, image(), {"first.weight": ("abc",), "around.weight": ("abc",), "last.weight": ("", "abc")}


@case
def randomly_leaking_units_go() -> Case:
    return between(lambda x: F.rrelu(F.rrelu(x), inplace=True), image(), "abc")


@case
def unpooled_channels_go_with_the_places_of_their_largest_entries() -> Case:
    def operation(x: Tensor) -> Tensor:
        flat, volume = (
            F.max_pool2d(x, 2, return_indices=True),
            F.max_pool3d(x[..., None], (2, 2, 1), return_indices=True),
        )
        return F.max_unpool2d(*flat, 2) + F.max_unpool3d(*volume, (2, 2, 1))[..., 0]

    return between(operation, image(), "abc")


@case
def all_sides_of_a_bilinear_layer_go() -> Case:
    def forward(m: Any, x: Tensor) -> Any:
        return m.last(m.both(m.first(x), m.second(x)))

    parts = {"first": linear(3, 4), "second": linear(3, 5), "both": nn.Bilinear(4, 5, 2), "last": linear(2, 2)}
    sides = {"first.weight": ("abcd", ""), "second.weight": ("efghi", ""), "last.weight": ("", "jk")}
    return (
        Forward(forward, **parts),
        torch.randn(6, 3),
        sides | {"both.weight": ("jk", "abcd", "efghi"), "both.bias": ("jk",)},
    )


@case
def positions_of_a_table_keep_their_number_when_flattened_with_channels() -> Case:
    def forward(m: Any, x: Tensor) -> Any:
        return m.last((m.first(x) + m.table).flatten(1))

    model = Forward(forward, first=linear(3, 2), table=nn.Parameter(torch.randn(4, 2)), last=linear(8, 2))
    labels = {"first.weight": ("ab", ""), "table": ("", "ab"), "last.weight": ("", "ab" * 4)}
    return model, torch.randn(5, 4, 3), labels


@case
def heads_go_whole_although_their_rows_are_chosen_and_put_elsewhere() -> Case:
    def forward(m: Any, x: Tensor, rows: Tensor) -> Any:
        heads = m.first(x).view(-1, 2, 3)
        heads = heads[rows] * heads[rows].softmax(-1)
        return m.last(torch.zeros_like(heads).index_put((rows,), heads).flatten(1))

    model = Forward(forward, first=linear(5, 6), last=linear(6, 5))
    labels = {"first.weight": ("aaabbb", ""), "last.weight": ("", "aaabbb")}
    return model, (torch.randn(3, 5), torch.tensor([2, 0, 1])), labels


@case
def channels_under_a_kernel_that_is_spread_to_all_of_them_go() -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        kernel = m.kernel[None, None]
        y = F.conv2d(y, kernel.expand(y.shape[1], 1, 3, 3), stride=2, groups=y.shape[1])
        return m.last(F.conv_transpose2d(y, kernel.repeat(y.shape[1], 1, 1, 1), groups=y.shape[1]))

    model = Forward(forward, first=conv(2, 3), kernel=torch.ones(3, 3), last=conv(3, 2))
    return model, image(), {"first.weight": ("abc",), "last.weight": ("", "abc")}


@case
def heads_whose_scores_are_added_to_zeros_in_explicit_sizes_go() -> Case:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (part.view(4, 2, 3).transpose(0, 1) for part in m.first(x).chunk(3, -1))
        scores = torch.baddbmm(torch.zeros(2, 4, 4), q, k.transpose(1, 2), beta=0).softmax(-1)
        return m.last((scores @ v).transpose(0, 1).flatten(1))

    model = Forward(forward, first=linear(5, 18), last=linear(6, 5))
    return model, torch.randn(4, 5), {"first.weight": ("aaabbb" * 3, ""), "last.weight": ("", "aaabbb")}


@case
def heads_of_weights_in_three_dimensions_go_whole() -> Case:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (torch.einsum("bnd,dhk->bnhk", x, weight) for weight in (m.q, m.k, m.v))
        weights = torch.einsum("bnhk,bmhk->bhnm", q, k).softmax(-1)
        return torch.einsum("bnhk,hkd->bnd", torch.einsum("bhnm,bmhk->bnhk", weights, v), m.out)

    parts = {name: nn.Parameter(torch.randn(5, 2, 3)) for name in "qkv"}
    model = Forward(forward, **parts, out=nn.Parameter(torch.randn(2, 3, 5)))
    return model, torch.randn(2, 4, 5), {name: ("", "ab") for name in "qkv"} | {"out": ("ab",)}


def canonical(labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return labels with letters in the order in which they are met; dimensions and tensors without any left out."""
    letters: dict[str, str] = {}
    found = {}
    for name in sorted(labels):
        kept = [
            "".join(x if x == "-" else letters.setdefault(x, chr(97 + len(letters))) for x in s) for s in labels[name]
        ]
        kept = ["" if set(s) <= {"-"} else s for s in kept]
        while kept and not kept[-1]:
            kept.pop()
        if kept:
            found[name] = kept
    return found


# The operations that are said to keep what a weight produces, where that is all of it.
KEPT_BY = {
    "indexed_by_what_the_input_says": ["sort"],
    "channels_chosen_by_the_input_stay": ["sort"],
    "deformable_convolution": ["torchvision::deform_conv2d"],  # the offsets
    "layer_norm_keeps_its_channels": ["native_layer_norm"],
    "means_over_channels_keep_them": ["mean"],
    "root_mean_square_norm_keeps_its_channels": ["mean"],
    "sigmoid_before_a_border_of_zeros_can_not": ["sigmoid"],
    "smallest_power_norm_keeps_channels": ["linalg_vector_norm"],
    "softmax_over_channels_keeps_them": ["mul", "_softmax"],
    "unknown_operation": ["renorm"],
    "weight_norm_makes_nan_of_zeros": ["mm"],
}


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_worked_out_by_hand(name: str) -> None:
    torch.manual_seed(0)
    model, x, expected = CASES[name]()
    channels = analyse(model.eval(), x)
    found = {}
    for tensor, dims in channels.labels.items():
        rank = max(dims) + 1
        numbers = [dims.get(d, torch.empty(0)).tolist() for d in range(rank)]
        found[tensor] = ["".join("-" if n < 0 else chr(97 + int(n)) for n in row) for row in numbers]
    assert canonical(found) == canonical({name: list(dims) for name, dims in expected.items()})
    unread = {"slices": [0], "cutting_by_negative_padding": [0], "indexed_channels": [1]}
    assert channels.dead.nonzero().flatten().tolist() == unread.get(name, [])
    assert [line.split("'")[1] for line in channels.barriers if "'" in line] == KEPT_BY.get(name, [])
    assert bool(channels.barriers) == (name in {*KEPT_BY, "multi_head_attention", "rolled_as_one_row"})


def test_a_barrier_names_the_operation_and_the_module() -> None:
    model = Forward(lambda m, x: m.last(m.inner(m.first(x))), first=conv(2, 3), last=conv(3, 2))
    model.inner = Forward(lambda m, x: x.renorm(2, 0, 1.0))
    assert analyse(model, image()).barriers == ("inner: operation 'renorm' has no rule",)


# Those of other devices, of other ways to run a model, of older releases, and of test_recurrent.py.
ELSEWHERE = frozenset(
    "empty new_empty bernoulli_ lstm gru rnn_tanh rnn_relu _pack_padded_sequence _pad_packed_sequence "
    "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm _fused_rms_norm _adaptive_avg_pool3d adaptive_avg_pool1d max_pool1d norm scaled_by_size "
    "as_strided_ reshape _reshape_alias alias contiguous narrow movedim chunk unsafe_chunk tensor_split "
    "adaptive_max_pool1d _safe_softmax lift_fresh avg_pool1d transformers::grouped_mm_fallback".split()
)


def test_every_rule_is_met_by_a_case() -> None:
    met: set[str] = set()
    for build in CASES.values():
        model, x, _ = build()
        met |= {op.name for op in record(model, x).ops}
    assert sorted({*RULES, *axes.MOVEMENTS, *axes.SPLITS} - met - ELSEWHERE) == []
