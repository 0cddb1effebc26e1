"""The columns of a step in the table that `kernels.run` goes through, and the kinds of steps."""

KINDS = ("CONVOLVE", "DOT", "SPLIT", "LARGEST", "AVERAGE", "MEAN", "ADD", "COPY", "PACK", "UNPACK", "CONVOLVE_TILES")
CONVOLVE, DOT, SPLIT, LARGEST, AVERAGE, MEAN, ADD, COPY, PACK, UNPACK, CONVOLVE_TILES = range(11)

COLUMNS = (
    "KIND",
    "CHANNELS",  # of the output (UNPACK: of the input)
    "LANES",  # images
    "IN",  # where the first pixel of the input's first plane is (ADD, COPY: where its first plane is)
    "IN_SIZE",  # from plane to plane
    "IN_LINE",  # from row to row
    "IN_HEIGHT",  # pixels
    "IN_WIDTH",
    "OUT",  # where the output's first plane is
    "OUT_SIZE",
    "FIRST",  # from a plane's beginning to its first pixel
    "HEIGHT",  # rows of the output
    "ROW",  # floats of one row's pixels
    "PITCH",  # from row to row
    "CHUNKS",  # of input channels: a row of weights for each and each output channel
    "BLOCK",  # floats of each row of a tile, which is computed before the next one
    "LINES",  # stretches without a gap that are computed, a row each or one in all
    "SPAN",  # floats of one
    "OUT_LINE",  # from stretch to stretch
    "RESIDUAL",  # where the first plane of what is added is, -1 if nothing is
    "POINTERS",  # CONVOLVE, DOT: where the rows' numbers of weights begin
    "BIASES",
    "WEIGHTS",  # what to add to a place among the offsets for that among the weights
    "LIMITS",  # where the least and the greatest value of the clamp are
    "STRIDE_ROWS",
    "STRIDE",
    "KERNEL_ROWS",
    "KERNEL",
    "MARGIN_ROWS",  # padding of a pooling
    "MARGIN",
    "DIVISOR",
    "SHAPE",  # CONVOLVE: number of the tile's shape
    "TILE_ROWS",  # rows of a tile
    "TENSOR",  # which of the addresses holds the torch tensor
)
(
    KIND,
    CHANNELS,
    LANES,
    IN,
    IN_SIZE,
    IN_LINE,
    IN_HEIGHT,
    IN_WIDTH,
    OUT,
    OUT_SIZE,
    FIRST,
    HEIGHT,
    ROW,
    PITCH,
    CHUNKS,
    BLOCK,
    LINES,
    SPAN,
    OUT_LINE,
    RESIDUAL,
    POINTERS,
    BIASES,
    WEIGHTS,
    LIMITS,
    STRIDE_ROWS,
    STRIDE,
    KERNEL_ROWS,
    KERNEL,
    MARGIN_ROWS,
    MARGIN,
    DIVISOR,
    SHAPE,
    TILE_ROWS,
    TENSOR,
) = range(len(COLUMNS))
