"""Lowering a graph of operations to instructions of kernels, and to PyTorch calls for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any

import torch
from torch import fx

from ..kernel_errors import blamed_on
from ..kernels.opcodes import Opcode
from ..kernels.planes import Planes
from .aten_graph import constants, shape_of
from .ir import Buffer, Call, Instruction
from .tiling import reads_strides

aten = torch.ops.aten


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return an operation's positional arguments: nodes and plain values."""
    return tuple(node.args)


class Lowering:
    """The state of lowering a graph, node by node, in order."""

    def __init__(self, graph: fx.GraphModule, rules: Mapping[Any, Rule], native: Callable[[fx.Node], bool]) -> None:
        self.graph = graph
        self.rules = rules
        self.native = native
        self.constants = constants(graph)
        self.instructions: list[Instruction | Call] = []
        self.planes: dict[int, Planes] = {}
        self.buffers: dict[fx.Node, Buffer] = {}
        self.tensors: set[fx.Node] = set()  # nodes whose values are torch tensors
        self.done: set[fx.Node] = set()
        self.past: set[fx.Node] = set()  # nodes that are lowered
        self.aliases: dict[int, tuple[int, int]] = {}  # buffers within another: its number, and the first plane
        self.pads = pads(graph, self.constants)

    def all(self) -> list[Instruction | Call]:
        """Return the instructions and calls of the whole graph, whose outputs are torch tensors."""
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.tensors.add(node)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self.tensor(source)
            elif node not in self.constants and node not in self.done:
                if not self.lower(node):
                    self.call(node)
            self.past.add(node)
        return self.instructions

    def lower(self, node: fx.Node) -> bool:
        """Emit an operation's instructions and return True; False if it has no kernel, or should not use it.

        Raises KernelError if a rule fails, so that only this operation is left to PyTorch.
        """
        rule = self.rules.get(node.target)
        if rule is None or not self.native(node):
            return False
        with blamed_on(node.name):
            return rule(self, node)

    def call(self, node: fx.Node) -> None:
        """Emit a PyTorch call."""
        for source in node.all_input_nodes:
            self.tensor(source)
        if node.target in (aten.view.default, aten._unsafe_view.default):
            # The strides may differ from those of the traced tensors.
            node.target = aten.reshape.default
        self.instructions.append(Call(node))
        self.tensors.add(node)

    def tensor(self, node: fx.Node) -> None:
        """Emit the conversion of a node's value to a torch tensor, unless it is one."""
        if node in self.tensors or node in self.constants:
            return
        buffer = self.buffers[node]
        planes, opcode = buffer.planes, Opcode.UNPACK_CHANNELS_LAST if buffer.channels_last else Opcode.UNPACK
        self.instructions.append(Instruction(opcode, node.name, planes, planes, (buffer.number,), -1, tensor=node))
        self.tensors.add(node)

    def emit(self, opcode: Opcode, node: fx.Node, out: Planes, *sources: Buffer, into: int = -1, **fields: Any) -> int:
        """Append an instruction that reads `sources` and writes planes; return the buffer that it writes.

        That is a new buffer unless an existing one is given as `into`; `fields` are other fields of the instruction.
        """
        number = self.new_buffer(out) if into < 0 else into
        reads = tuple(source.number for source in sources)
        self.instructions.append(Instruction(opcode, node.name, out, sources[0].planes, reads, number, **fields))
        return number

    def new_buffer(self, planes: Planes) -> int:
        """Return the number of a new buffer."""
        self.planes[len(self.planes)] = planes
        return len(self.planes) - 1

    def image(self, node: fx.Node) -> Buffer | None:
        """Return planes with the pixels of a tensor [image, channel, row, column]; None for any other."""
        shape = shape_of(node)
        if shape is None or len(shape) != 4 or node in self.constants:
            return None
        found = self.buffers.get(node)
        if found is not None:
            planes = found.planes
            fits = (planes.batch, planes.channels, planes.height, planes.width) == shape
            if not fits or found.last and planes.height * planes.width > 1:
                return None
            wanted = self.image_planes(shape)
            return found if planes.pad >= wanted.pad else self.padded(node, found, wanted)
        return self.pack(node, self.image_planes(shape), shape)

    def padded(self, node: fx.Node, source: Buffer, planes: Planes) -> Buffer:
        """Return a copy of planes with wider padding, e.g. for a matrix that is read as images."""
        window = {"PADDING_Y": 0, "PADDING_X": 0}
        number = self.emit(Opcode.PAD_CROP, node, planes, source, numbers=window, scalars=(0.0, 0.0))
        return Buffer(number, planes, source.shape)

    def matrix(self, node: fx.Node) -> Buffer | None:
        """Return planes with the columns of a matrix [row, column], rows as the batch; None for any other tensor."""
        shape = shape_of(node)
        if shape is None or len(shape) != 2 or node in self.constants:
            return None
        found = self.buffers.get(node)
        if found is not None:
            return found if found.planes.batch == shape[0] and not found.last else None
        return self.pack(node, Planes(shape[1], 1, 1, 0, shape[0]), shape)

    def matching(self, node: fx.Node, other: Buffer) -> Buffer | None:
        """Return planes of a tensor with shape and layout of `other`; None if its own differ."""
        if shape_of(node) != other.shape or node in self.constants:
            return None
        if node not in self.buffers and node not in self.tensors:
            return None  # not computed yet
        if node not in self.buffers:
            return self.pack(node, other.planes, other.shape, other.last)
        found = self.buffers[node]
        return found if (found.planes, found.last) == (other.planes, other.last) else None

    def features(self, node: fx.Node) -> Buffer | None:
        """Return planes whose channels are the last dimension of a tensor; None if its layout differs."""
        shape = shape_of(node)
        if shape is None or len(shape) < 2 or node in self.constants:
            return None
        found = self.buffers.get(node)
        if found is not None:
            return found if found.channel_dim == len(shape) - 1 else None
        return self.pack(node, Planes(shape[-1], 1, 1, 0, math.prod(shape[:-1])), shape)

    def image_planes(self, shape: tuple[int, ...]) -> Planes:
        """Return the layout of images of this shape, [image, channel, row, column]."""
        batch, channels, height, width = shape
        return Planes(channels, height, width, self.pads.get((height, width), 0), batch)

    def pack(self, node: fx.Node, planes: Planes, shape: tuple[int, ...], last: bool = False) -> Buffer:
        """Return new planes that are written from a torch tensor."""
        self.tensor(node)
        buffer = Buffer(self.new_buffer(planes), planes, shape, last)
        opcode = Opcode.PACK_CHANNELS_LAST if buffer.channels_last else Opcode.PACK
        self.instructions.append(Instruction(opcode, node.name, planes, planes, (), buffer.number, tensor=node))
        self.buffers[node] = buffer
        return buffer

    def bind(self, node: fx.Node, number: int, planes: Planes, last: bool = False) -> bool:
        """Record that a node's value is in these planes, and return True."""
        shape = shape_of(node)
        assert shape is not None
        self.buffers[node] = Buffer(number, planes, shape, last)
        self.done.add(node)
        return True

    def root(self, number: int) -> tuple[int, int]:
        """Return the buffer that contains a buffer (maybe itself), and the plane at which it begins there."""
        begin = 0
        while number in self.aliases:
            number, more = self.aliases[number]
            begin += more
        return number, begin

    def reusable(self, node: fx.Node, source: Buffer) -> bool:
        """Return whether only `node` still reads a buffer, which it may then overwrite."""
        whole, _ = self.root(source.number)
        return all(
            user is node or user in self.done or user in self.past  # done: fused into an earlier node
            for other, buffer in self.buffers.items()
            if self.root(buffer.number)[0] == whole
            for user in other.users
        )

    def only_user(self, node: fx.Node) -> fx.Node | None:
        """Return the only operation that uses a node's value, None if there are several or none."""
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def first_result(lowering: Lowering, node: fx.Node) -> fx.Node | None:
    """Return the node of an operation's first result, None if other results are used too."""
    user = lowering.only_user(node)
    return user if user is not None and user.target is getitem and arguments(user)[1] == 0 else None


def pads(graph: fx.GraphModule, known: Mapping[fx.Node, Any]) -> dict[tuple[int, int], int]:
    """Return the padding of images of each size: that of the widest convolution on them.

    One with a stride has padding in the planes that it reads unless generated code can read the images' own.
    """
    widest: dict[tuple[int, int], int] = {}
    for node in graph.graph.nodes:
        if node.target is aten.convolution.default and not arguments(node)[6]:
            shape = shape_of(arguments(node)[0])
            if shape is not None and len(shape) == 4 and (set(arguments(node)[3]) == {1} or reads_strides(shape[0])):
                size = (shape[2], shape[3])
                widest[size] = max(widest.get(size, 0), *arguments(node)[4])
    return widest


# Emits the instructions of an operation, with its fused epilogue; False leaves it to PyTorch.
Rule = Callable[[Lowering, fx.Node], bool]
