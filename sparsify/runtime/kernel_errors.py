"""What goes wrong with a way of running a model, and what of that is a kernel's own failure."""

from __future__ import annotations

from dataclasses import dataclass

PASSED = (AssertionError, Warning)  # what is never taken for the failure of one way: a wrong premise, a warning


class KernelError(RuntimeError):
    """A kernel's own failure, of the operation (a node's name) for a reason, one line."""

    def __init__(self, operation: str, error: BaseException) -> None:
        self.operation = operation
        self.reason = one_line(error)
        super().__init__(f"{operation}: {self.reason}")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a way: one line, whether it was an error, and whether that was a kernel's own."""

    text: str
    raised: bool = False
    of_kernel: bool = False


def one_line(error: BaseException) -> str:
    """Return what an error says, with its type and its notes."""
    text = " ".join([str(error), *getattr(error, "__notes__", ())])
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
