"""Which part of an output is computed before the next one's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.runtime.kernels.planes import Planes
from sparsify.runtime.kernels.simd import WIDTH
from sparsify.runtime.lowering.tiling import SHAPES, SHARED_SHAPES, Tiling, _cost, keeps_within, tiling

SIZES = st.integers(1, 30)


@pytest.mark.skipif(WIDTH != 16, reason="counts vectors of AVX-512")
@pytest.mark.parametrize(
    ("height", "width", "batch", "shape", "linear"),
    [
        (2, 2, 16, (2, 2), False),
        (4, 4, 16, (2, 4), False),
        (8, 8, 16, (1, 8), False),
        (7, 7, 16, (1, 7), False),
        (14, 14, 1, (1, 7), True),  # 14 rows of 15 floats, 13.1 vectors
        (56, 56, 1, (1, 8), True),  # 199.5 vectors, 25 tiles
    ],
)
def test_borders_are_computed_only_where_that_saves_something(
    height: int, width: int, batch: int, shape: tuple[int, int], linear: bool
) -> None:
    planes = Planes(1, height, width, 1, batch)
    assert tiling(planes, planes) == Tiling(*shape, linear)


@given(
    height=SIZES,
    width=SIZES,
    pad=st.integers(0, 2),
    batch=st.integers(1, 33),
    gap=st.booleans(),
    shapes=st.sampled_from([SHAPES, SHARED_SHAPES]),
)
def test_a_tiling_is_allowed_and_the_cheapest(
    height: int, width: int, pad: int, batch: int, gap: bool, shapes: tuple[tuple[int, int], ...]
) -> None:
    out = Planes(1, height, width, pad, batch)
    source = Planes(1, height + gap, width + gap, pad, batch)
    found = tiling(out, source, shapes)
    assert not (found.linear and gap)
    # PackedRows that end inside a vector go one after the other.
    assert found.rows == 1 or (out.row % WIDTH == 0 and not found.linear)
    rows = [Tiling(*shape, False) for shape in shapes if shape[0] == 1]
    assert _cost(found, out) <= min(_cost(one, out) for one in rows)
    if keeps_within(out, source) and out.row % WIDTH:
        assert found.linear
    assert _cost(found, out) >= (height * width * batch) / WIDTH
