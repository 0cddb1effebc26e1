"""A progress bar for runs that are started from Python, on a terminal or in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..loop.train_steps import Record, Training


@contextmanager
def progress_bar(training: Training) -> Iterator[Callable[[Record], None]]:
    """Show a bar of the training's steps while the block lasts; yield what moves it at each record."""
    from tqdm.auto import tqdm

    with tqdm(total=training.total_steps, initial=training.step, unit="step") as bar:

        def show(record: Record) -> None:
            state = {"loss": f"{record['loss']:.4f}", "sparsity": f"{record['sparsity']:.1%}"}
            if "test_accuracy" in record:
                state["test"] = f"{record['test_accuracy']:.1%}"
            bar.set_postfix(state, refresh=False)
            bar.update(record["step"] - bar.n)

        yield show
