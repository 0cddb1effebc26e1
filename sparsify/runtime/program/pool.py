"""The packed rows and generated code of all instructions of a program, concatenated."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codegen.executable import Executable
from ..kernels.opcodes import Opcode
from ..kernels.simd import TILE
from ..lowering.ir import Instruction
from .row_code import row_code

Array = np.ndarray[Any, Any]


class Pool:
    """Collects the packed rows and generated code of all instructions."""

    def __init__(self) -> None:
        self.offsets: list[Array] = []
        self.values: list[Array] = []
        self.indptr: list[Array] = []
        self.biases: list[Array] = []
        self.scalars: list[float] = []
        self.offset_count = self.value_count = self.indptr_count = self.bias_count = 0
        self.code = bytearray()
        self.blocks: list[Array] = []  # among the indptr, with addresses relative to the code

    def add(self, instruction: Instruction) -> dict[str, int]:
        """Append an instruction's packed rows and return the columns that locate them."""
        self.scalars += instruction.scalars
        found, rows = {"SCALARS": len(self.scalars) - 2}, instruction.rows
        if instruction.opcode == Opcode.CONVOLVE_GENERATED:
            return found | self._generate(instruction)
        if rows is not None:
            found |= {"INDPTR": self.indptr_count, "BIASES": self.bias_count, "CHANNELS": len(rows.biases)}
            # indptr counts offsets; tiles have several values for each.
            each = TILE if instruction.opcode == Opcode.CONVOLVE_TILES else 1
            found["VALUES"] = self.value_count - each * self.offset_count
            self.indptr.append(rows.indptr + self.offset_count)
            self.offsets.append(rows.offsets)
            self.values.append(rows.values)
            self.biases.append(rows.biases)
            self.offset_count += len(rows.offsets)
            self.value_count += len(rows.values)
            self.indptr_count += len(rows.indptr)
            self.bias_count += len(rows.biases)
        return found

    def _generate(self, instruction: Instruction) -> dict[str, int]:
        """Append an instruction's code and values, with the start of each block's."""
        assert instruction.rows is not None
        inside = instruction.reads[-1] == instruction.writes
        adds = len(instruction.reads) > 1 and not inside
        made = row_code(instruction.rows, instruction.source, instruction.planes, instruction.scalars, inside, adds)
        begins, entries = made.starts + len(self.code), made.first_values + self.value_count
        # The end of the last block, and of an empty one after it.
        end = [len(self.code) + len(made.code), self.value_count + len(made.values)]
        blocks = np.concatenate([np.stack([begins, entries], axis=1).reshape(-1), end, end])
        found = {"INDPTR": self.indptr_count, "CHANNELS": len(instruction.rows.biases)}
        self.code += made.code
        self.values.append(made.values)
        self.indptr.append(blocks)
        self.blocks.append(blocks)
        self.value_count += len(made.values)
        self.indptr_count += len(blocks)
        return found | {"GROUPS": made.groups, "CHUNKS": made.chunks}

    def executable(self) -> Executable | None:
        """Return the code in executable memory, if there is any; the blocks then hold absolute addresses."""
        if not self.code:
            return None
        found = Executable(bytes(self.code))
        for blocks in self.blocks:
            blocks[::2] += found.address
        return found

    def arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        """Return offsets, values, indptr, biases and scalars."""
        return (
            np.concatenate([*self.offsets, np.zeros(1, np.uint32)]),
            np.concatenate([*self.values, np.zeros(1, np.float32)]),
            np.concatenate([*self.indptr, np.zeros(1, np.int64)]),
            np.concatenate([*self.biases, np.zeros(1, np.float32)]),
            np.array(self.scalars, dtype=np.float32),
        )
