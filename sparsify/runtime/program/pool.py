"""The packed rows of a program's instructions, and the code generated for them, in arrays of all."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.executable import Executable
from ..kernels.opcodes import Opcode
from ..kernels.simd import TILE
from ..lowering.ir import Instruction
from .row_code import row_code

Array = np.ndarray[Any, Any]


class Pool:
    """The packed rows of all instructions, one after the other."""

    def __init__(self) -> None:
        self.offsets: list[Array] = []
        self.values: list[Array] = []
        self.indptr: list[Array] = []
        self.biases: list[Array] = []
        self.scalars: list[float] = []
        self.offset_count = self.value_count = self.indptr_count = self.bias_count = 0
        self.code = bytearray()
        self.blocks: list[Array] = []  # among the indptr, with addresses counted from the code's beginning

    def add(self, instruction: Instruction) -> dict[str, int]:
        """Append an instruction's packed rows and return the columns that say where they are."""
        self.scalars += instruction.scalars
        found, rows = {"SCALARS": len(self.scalars) - 2}, instruction.rows
        if instruction.opcode == Opcode.CONVOLVE_GENERATED:
            return found | self._generate(instruction)
        if rows is not None:
            found |= {"INDPTR": self.indptr_count, "BIASES": self.bias_count, "CHANNELS": len(rows.biases)}
            # indptr counts offsets; tiles have more values than those, so that values lie elsewhere.
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
        """Append an instruction's code and its values, with where those of each block begin."""
        assert instruction.rows is not None
        inside = instruction.reads[-1] == instruction.writes
        adds = len(instruction.reads) > 1 and not inside
        made = row_code(instruction.rows, instruction.source, instruction.planes, instruction.scalars, inside, adds)
        begins, entries = made.starts + len(self.code), made.first_values + self.value_count
        # The end of the last block, and of one behind it, which is empty.
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
        """Return the code where it can run, if there is any; from then on the blocks hold addresses."""
        if not self.code:
            return None
        found = Executable(bytes(self.code))
        for blocks in self.blocks:
            blocks[::2] += found.address
        return found

    def arrays(self) -> tuple[Array, Array, Array, Array, Array]:
        return (
            np.concatenate([*self.offsets, np.zeros(1, np.uint32)]),
            np.concatenate([*self.values, np.zeros(1, np.float32)]),
            np.concatenate([*self.indptr, np.zeros(1, np.int64)]),
            np.concatenate([*self.biases, np.zeros(1, np.float32)]),
            np.array(self.scalars, dtype=np.float32),
        )
