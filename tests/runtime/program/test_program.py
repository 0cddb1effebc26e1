"""Where planes and buffers lie."""

from hypothesis import given
from hypothesis import strategies as st

from sparsify.runtime.kernels.opcodes import Opcode
from sparsify.runtime.kernels.planes import ALIGNMENT, Planes
from sparsify.runtime.lowering.ir import Instruction
from sparsify.runtime.program.assemble import plan_memory

SIZES = st.integers(1, 9)


@given(height=SIZES, width=SIZES, pad=st.integers(0, 3), batch=st.sampled_from([1, 2, 5, 8, 16, 17]))
def test_no_pixel_lies_where_another_or_a_border_is(height: int, width: int, pad: int, batch: int) -> None:
    planes = Planes(2, height, width, pad, batch)
    pixels = {
        channel * planes.size + planes.first + y * planes.row_stride + x * batch + image: (channel, y, x, image)
        for channel in range(2)
        for y in range(height)
        for x in range(width)
        for image in range(batch)
    }
    assert len(pixels) == 2 * height * width * batch
    assert max(pixels) < 2 * planes.size <= planes.floats
    # What a kernel reads of the border is within the planes, and no pixel.
    for y in (-pad, height - 1 + pad):
        for x in (-pad, width - 1 + pad):
            for image in range(batch):
                place = planes.first + y * planes.row_stride + x * batch + image
                assert 0 <= place < planes.size
                assert pad == 0 or place not in pixels


def test_one_pixel_of_one_image_is_a_number_each() -> None:
    assert Planes(5, 1, 1, 0, 1).size == 1
    assert Planes(5, 1, 1, 0, 3).size == ALIGNMENT


@given(
    lives=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 40)), min_size=1, max_size=8),
)
def test_buffers_that_are_alive_together_share_no_memory(lives: list[tuple[int, int, int]]) -> None:
    planes = {number: Planes(channels, 2, 2, 1, 1) for number, (_, _, channels) in enumerate(lives)}
    steps = []
    for time in range(9):
        for number, (one, other, _) in enumerate(lives):
            if time in (min(one, other), max(one, other)):
                steps.append(Instruction(Opcode.BINARY, "", planes[number], planes[number], (number,), number))
    places, end = plan_memory(steps, planes, {})
    used = {number: [index for index, step in enumerate(steps) if step.writes == number] for number in planes}
    for one in planes:
        assert places[one] + planes[one].floats <= end
        for other in planes:
            if one < other and used[one][0] <= used[other][-1] and used[other][0] <= used[one][-1]:
                first, second = sorted((one, other), key=places.__getitem__)
                assert places[first] + planes[first].floats <= places[second]


def test_buffers_that_follow_each_other_share_memory() -> None:
    planes = {number: Planes(4, 3, 3, 1, 2) for number in range(4)}
    steps = [Instruction(Opcode.BINARY, "", planes[n], planes[n - 1], (n - 1,), n) for n in range(1, 4)]
    places, _ = plan_memory(steps, planes, {})
    assert places[0] == places[2]
    assert places[1] == places[3]


def test_planes_of_another_buffer_lie_in_it() -> None:
    planes = {number: Planes(count, 3, 3, 1, 2) for number, count in enumerate((2, 3, 5, 9, 5))}
    # 0 and 1 are 2, one after the other, and 2 is the end of 3; 4 is written between them.
    within = {0: (2, 0), 1: (2, 2), 2: (3, 4)}
    order = [((), 0), ((0,), 4), ((4,), 1), ((2,), 4), ((3,), 4)]
    steps = [Instruction(Opcode.BINARY, "", planes[n], planes[n], reads, n) for reads, n in order]
    places, end = plan_memory(steps, planes, within)
    size = planes[0].size
    assert [places[n] - places[3] for n in (0, 1, 2)] == [4 * size, 6 * size, 4 * size]
    assert places[4] >= places[3] + planes[3].floats or places[3] >= places[4] + planes[4].floats
    assert end >= planes[3].floats + planes[4].floats
