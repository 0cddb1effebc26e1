"""The instruction encoding: opcodes, and the meaning of each integer of an instruction (column)."""

from __future__ import annotations

from enum import IntEnum, auto


class Opcode(IntEnum):
    """A kernel, numbered in order, with its name in `print(engine)`. A new one needs a row here, the kernel with its
    branch in interpreter.py, and a lowering rule with its row in lowering/rules.py."""

    description: str

    def __new__(cls, description: str) -> Opcode:
        member = int.__new__(cls, len(cls.__members__))
        member._value_ = len(cls.__members__)
        member.description = description
        return member

    CONVOLVE = "sparse kernel"
    DOT = "sparse kernel, one image"
    CONVOLVE_TILES = "dense kernel"
    CONVOLVE_GENERATED = "sparse kernel, generated code"
    DECIMATE = "decimation (phases of a stride)"
    MAX_POOL = "max pooling"
    AVG_POOL = "average pooling"
    MEAN = "global average pooling"
    BINARY = "add, subtract, multiply, clamp"
    ACTIVATION = "activation"
    LAYER_NORM = "layer norm"
    COPY = "copy"
    PAD_CROP = "pad or crop"
    UPSAMPLE = "nearest-neighbour upsampling"
    PACK = "layout conversion from PyTorch"
    UNPACK = "layout conversion to PyTorch"
    PACK_CHANNELS_LAST = "layout conversion from PyTorch (channels last)"
    UNPACK_CHANNELS_LAST = "layout conversion to PyTorch (channels last)"


class Activation(IntEnum):
    """Functions of ACTIVATION."""

    SIGMOID = 0
    SILU = auto()
    GELU = auto()
    GELU_TANH = auto()
    TANH = auto()
    HARDSIGMOID = auto()
    HARDSWISH = auto()
    LEAKY_RELU = auto()
    ELU = auto()
    MISH = auto()


class Binary(IntEnum):
    """Operations of BINARY."""

    SUM = 0
    DIFFERENCE = auto()
    PRODUCT = auto()


class Column(IntEnum):
    """The integers of an instruction. Sizes and strides count floats; places are offsets into the buffers.

    A plane is one channel of all images. IN_PLANE and OUT_PLANE are the strides from plane to plane.
    """

    OPCODE = 0
    CHANNELS = auto()  # of the output (UNPACK: of the input)
    BATCH = auto()  # images
    IN = auto()  # the first pixel of the input's first plane (ACTIVATION, BINARY, COPY: where its first plane begins)
    IN_PLANE = auto()
    IN_ROW_STRIDE = auto()
    IN_HEIGHT = auto()  # pixels
    IN_WIDTH = auto()
    OUT = auto()  # the beginning of the output's first plane
    OUT_PLANE = auto()
    FIRST = auto()  # from a plane's beginning to its first pixel: the padding above
    HEIGHT = auto()  # rows of the output
    ROW = auto()  # floats of one row's pixels
    ROW_STRIDE = auto()
    CHUNKS = auto()  # of input channels: a packed row for each chunk and output channel (cache blocking)
    GROUPS = auto()  # CONVOLVE_GENERATED: of output channels, each with a block of code for each chunk
    TILE_SHAPE = auto()  # index among packed_rows.SHAPES or SHARED_SHAPES
    TILE_ROWS = auto()
    TILE_WIDTH = auto()  # floats of each row of a tile
    RUNS = auto()  # contiguous runs that are computed: one for each row, or one in all
    RUN = auto()  # floats of one
    RESIDUAL = auto()  # the first plane of the residual, -1 for none
    INDPTR = auto()  # the beginning of the packed rows' indptr, or of the addresses of code and values, block by block
    VALUES = auto()  # add it to an index of the offsets to get that of the values
    BIASES = auto()
    SCALARS = auto()  # two floats: clamp_min and clamp_max (ACTIVATION: parameter and factor; LAYER_NORM: eps)
    STRIDE_Y = auto()
    STRIDE_X = auto()
    KERNEL_Y = auto()
    KERNEL_X = auto()
    PADDING_Y = auto()  # of a pooling; PAD_CROP: the input's row at which the output begins
    PADDING_X = auto()
    DIVISOR = auto()
    TENSOR = auto()  # which of the addresses holds the PyTorch tensor
    FUNCTION = auto()  # an Activation, or a Binary
    FACTORS = auto()  # BINARY: the factor of the first plane's first image, -1 for none
    FACTORS_PLANE = auto()
    COPY_STRIDE = auto()  # COPY: from plane to plane of the output


COLUMNS = len(Column)
