"""Failures after which PyTorch runs instead: of an operation's kernel, of tracing, of an execution strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import RunError

PASSED = (AssertionError, Warning)  # never caught: a broken invariant of ours, a warning turned into an error


class KernelError(RuntimeError):
    """The kernel of an operation (a node's name), or its lowering, failed; the reason is one line."""

    def __init__(self, operation: str, error: BaseException) -> None:
        self.operation = operation
        self.reason = one_line(error)
        super().__init__(f"{operation}: {self.reason}")


class OtherSizes(RunError):
    """The sizes of a record depend on values, and these values give others."""


class TraceError(RuntimeError):
    """PyTorch cannot record the forward; its reason is one line."""


@contextmanager
def blamed_on(operation: str) -> Iterator[None]:
    """Raise any exception in the block as a KernelError of this operation."""
    try:
        yield
    except PASSED:
        raise
    except Exception as error:
        raise KernelError(operation, error) from error


@dataclass(frozen=True)
class Fault:
    """Why an execution strategy is not used, one line.

    `raised`: there was an exception, and not only a forward that depends on values or images that depend on each other.
    `ours`: it may be a bug of the engine, since tracing succeeded.
    """

    strategy: str
    text: str
    raised: bool = False
    ours: bool = False


def by_reason(faults: Sequence[Fault], alone: bool) -> dict[str, str]:
    """Return the strategies of faults to report, by their reason; all that `raised` too if PyTorch is `alone`."""
    reasons = dict.fromkeys(fault.text for fault in faults if fault.ours or fault.raised and alone)
    return {why: " or ".join(dict.fromkeys(one.strategy for one in faults if one.text == why)) for why in reasons}


def one_line(error: BaseException) -> str:
    """Return an error's type, message and notes on one line."""
    text = " ".join([str(error), *getattr(error, "__notes__", ())])
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
