"""The columns of a step in the table that `kernels.run` goes through, and the kinds of steps."""

KINDS = (
    "CONVOLVE",
    "DOT",
    "SPLIT",
    "LARGEST",
    "AVERAGE",
    "MEAN",
    "COMBINE",
    "COPY",
    "PACK",
    "UNPACK",
    "CONVOLVE_TILES",
    "FUNCTION_OF",
    "NORM",
    "PLACE",
    "ENLARGE",
    "PACK_CHANNELS_LAST",
    "UNPACK_CHANNELS_LAST",
)
CONVOLVE, DOT, SPLIT, LARGEST, AVERAGE, MEAN, COMBINE, COPY, PACK, UNPACK, CONVOLVE_TILES = range(11)
FUNCTION_OF, NORM, PLACE, ENLARGE, PACK_CHANNELS_LAST, UNPACK_CHANNELS_LAST = range(11, 17)

FUNCTIONS = (
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "tanh",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
    "elu",
    "mish",
)
SIGMOID, SILU, GELU, GELU_TANH, TANH, HARDSIGMOID, HARDSWISH, LEAKY_RELU, ELU, MISH = range(len(FUNCTIONS))
SUM, DIFFERENCE, PRODUCT = range(3)

COLUMNS = (
    "KIND",
    "CHANNELS",  # of the output (UNPACK: of the input)
    "LANES",  # images
    "IN",  # where the first pixel of the input's first plane is (FUNCTION_OF, COMBINE, COPY: where its first plane is)
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
    "LIMITS",  # where the least and the greatest value of the clamp are (FUNCTION_OF: its parameter, and a factor)
    "STRIDE_ROWS",
    "STRIDE",
    "KERNEL_ROWS",
    "KERNEL",
    "MARGIN_ROWS",  # padding of a pooling; PLACE: where the window begins
    "MARGIN",
    "DIVISOR",
    "SHAPE",  # CONVOLVE: number of the tile's shape
    "TILE_ROWS",  # rows of a tile
    "TENSOR",  # which of the addresses holds the torch tensor
    "FUNCTION",  # FUNCTION_OF: which; COMBINE: whether sum, difference or product with RESIDUAL
    "FACTORS",  # where the number is that a plane's pixels of the first image are multiplied by, -1 if there is none
    "FACTORS_SIZE",  # from plane to plane of those
    "OUT_STEP",  # COPY: from plane to plane of the output
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
    FUNCTION,
    FACTORS,
    FACTORS_SIZE,
    OUT_STEP,
) = range(len(COLUMNS))
