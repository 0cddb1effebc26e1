"""A progress bar for runs that are started from Python, on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..loop.train_steps import Record, Training


@contextmanager
def progress_bar(training: Training) -> Iterator[Callable[[Record], None]]:
    """Show a bar of the training's steps while the block lasts; yield what moves it at each record."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}")) as bar:
        task = bar.add_task("training", total=training.total_steps, completed=training.step, state="")

        def show(record: Record) -> None:
            tested = f"  test {record['test_accuracy']:.1%}" if "test_accuracy" in record else ""
            state = f"loss {record['loss']:.4f}  sparsity {record['sparsity']:.1%}{tested}"
            bar.update(task, completed=record["step"], state=state)

        yield show
