"""Communication between the processes that train one model: sums, decisions, errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ..errors import ElsewhereError, SparsifyError, one_line

Group = Any  # a ProcessGroup of torch.distributed, None for a single process


def group_of(model: nn.Module) -> Group:
    """Return the process group that trains `model`, None for a single process.

    It is that of DistributedDataParallel, else the default group of torch.distributed if it is initialised.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    group: Group = distributed.group.WORLD
    if isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    return group if distributed.get_world_size(group) > 1 else None


def size_of(group: Group) -> int:
    """Return the number of processes."""
    return 1 if group is None else distributed.get_world_size(group)


def sum_over(tensors: Iterable[Tensor], group: Group) -> None:
    """Replace each tensor by its sum over all processes, in place; the result has the same bits on all of them."""
    if group is not None:
        for tensor in tensors:
            distributed.all_reduce(tensor, group=group)


def average_over(tensors: Iterable[Tensor], group: Group) -> None:
    """Replace each tensor by its mean over all processes, in place."""
    if group is not None:
        tensors = list(tensors)
        sum_over(tensors, group)
        for tensor in tensors:
            tensor.div_(size_of(group))


def total(number: int, group: Group) -> int:
    """Return the sum of a number over all processes."""
    return number if group is None else sum(gather(number, group))


def gather(value: Any, group: Group) -> list[Any]:
    """Return the `value` of every process, ordered by rank."""
    values: list[Any] = [value]
    if group is not None:
        values = [None] * size_of(group)
        distributed.all_gather_object(values, value, group=group)
    return values


@contextmanager
def together(group: Group) -> Iterator[None]:
    """Raise an error of the block on all processes, so that none waits for one that failed.

    The failed process with the lowest rank raises its own error, the others ElsewhereError with its text. Code in the
    block must not wait for another process.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # noqa: BLE001 - raised below, in every process
        error = caught
    if group is None:
        if error is not None:
            raise error
        return
    failure = None if error is None else (one_line(error, 1000), _code(error))
    found = [(rank, *one) for rank, one in enumerate(gather(failure, group)) if one is not None]
    if not found:
        return
    rank, text, code = found[0]
    if error is not None and rank == distributed.get_rank(group):
        raise error
    raise ElsewhereError(f"process {rank}: {text}", code) from error


_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


@contextmanager
def others_lost(size: int) -> Iterator[None]:
    """Raise ElsewhereError, one line, if the block waits in vain for another of `size` processes."""
    try:
        yield
    except RuntimeError as error:
        if size == 1 or not _LOST.search(str(error)):
            raise
        text = (
            "another of the processes has ended, or cannot be reached or does nothing any more; its own line says why, "
            "if it wrote one"
        )
        raise ElsewhereError(text, reported=False) from error


def _code(error: Exception) -> int:
    return error.exit_code if isinstance(error, SparsifyError) else 1


@dataclass(frozen=True)
class Ranks:
    """The processes of one training run: the rank of this one, their number, its rank on its machine.

    `group` sends messages in CPU memory, so that communication does not wait for a device.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: Group = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any process."""
        if self.group is None:
            return flags
        numbers = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX, group=self.group)
        return tuple(map(bool, numbers.tolist()))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on the tensor's device."""
        if self.group is None:
            return tensor
        whole = tensor.cpu()
        whole = whole.clone() if whole is tensor else whole
        distributed.all_reduce(whole, group=self.group)
        return whole.to(tensor.device)

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, ordered by rank."""
        return gather(value, self.group)

    def of_first(self, value: Any) -> Any:
        """Return the first process's `value`."""
        values = [value if self.first else None]
        if self.group is not None:
            distributed.broadcast_object_list(values, 0, group=self.group)
        return values[0]

    def together(self) -> Any:
        """Return a context manager that raises an error of one process on all; see `together`."""
        return together(self.group)

    def one_of(self, error: SparsifyError) -> SparsifyError:
        """Return what to raise for an error that occurs on all processes: ElsewhereError except on the first."""
        return error if self.first else ElsewhereError(str(error), error.exit_code)

    def take_buffers(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values of these tensors to all processes, in place."""
        if self.group is not None:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)


ALONE = Ranks()


def joined_ranks(model: nn.Module) -> Ranks:
    """Return the processes that train `model` in the user's own loop."""
    group = group_of(model)
    return ALONE if group is None else Ranks(distributed.get_rank(group), size_of(group), 0, group)
