"""The sheet at the top: the sparse model against the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from ...quantities import byte_count, percent
from ..bench_results import BenchResult, Timing
from ..comparison import Cell
from ..layer_records import Layers
from ..run_records import Run
from .parts import Sheet, Table, TableCell, plain_row

ENGINE = "sparsify engine"
_TORCH = "torch, c"  # contiguous or channels last


def make_sheet(run: Run, layers: Layers, cells: Sequence[Cell] = ()) -> Sheet:
    """Return a run's sheet; the dense accuracy comes from a dense recipe among `cells`, those of the report."""
    dense = next((cell for cell in cells if not cell.sparsity), None)
    own = next((cell for cell in cells if run in cell.runs), None)
    reached = _accuracy(own) if own else "-" if run.accuracy is None else percent(run.accuracy)
    average = "of the average of the weights" if run.recipe.train.ema is not None else ""
    rows = [plain_row("test accuracy", _accuracy(dense) if dense and run.sparsity else "not given", reached, average)]
    rows.append(_counts("parameters", layers.parameters, layers.kept_parameters))
    if layers.multiply_adds is not None and layers.kept_multiply_adds is not None:
        rows.append(_counts("multiply-adds of a pass", layers.multiply_adds, layers.kept_multiply_adds))
    file = run.file
    sizes = (byte_count(file.bytes_original), byte_count(file.bytes_file))
    rows.append(plain_row("file", *sizes, _times(file.bytes_original / max(1, file.bytes_file), "smaller")))
    if run.bench:
        pair = _fastest(run.bench[-1])
        if pair is not None:
            torch, engine = pair
            faster = _times(torch.median / engine.median, "as fast")
            rows.append(plain_row("time of a pass", milliseconds(torch.median), milliseconds(engine.median), faster))
    notes = [] if run.bench else [f"Not timed yet: sparsify bench {quote(str(run.folder))}"]
    if layers.dead:
        dead = f"{layers.dead:,} of {layers.channels:,} channels are dead"
        notes.append(f"{dead}: sparsify export {quote(str(run.folder))} --shrink removes those that masks make dead")
    table = Table(("", "dense", "sparse", ""), tuple(rows))
    return Sheet(_sentence(run, layers), table, tuple([*_about_times(run), *notes]))


def milliseconds(seconds: float) -> str:
    """Return a time with three significant digits: 0.521 ms, 12.3 ms."""
    value = 1e3 * seconds
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f} ms"


def _sentence(run: Run, layers: Layers) -> str:
    name = run.file.metadata.spec or run.recipe.model.name
    classes = "" if run.accuracy is None else f" and classifies {percent(run.accuracy)} of the test images correctly"
    if not run.sparsity:
        return f"{name} is dense: nothing was removed. It takes {byte_count(run.file.bytes_file)}{classes}."
    share = percent(layers.kept_parameters / layers.parameters) if layers.parameters else "-"
    sizes = f"{byte_count(run.file.bytes_file)} in place of {byte_count(run.file.bytes_original)}"
    fast = ""
    pair = _fastest(run.bench[-1]) if run.bench else None
    if pair is not None:
        torch, engine = pair
        fast = f", answers {torch.median / engine.median:.1f} times as fast on the sparse engine as on PyTorch"
    return f"{name} keeps {share} of its parameters, takes {sizes}{fast}{classes}."


def _about_times(run: Run) -> list[str]:
    if not run.bench:
        return []
    last = run.bench[-1]
    shape = "x".join(map(str, last.shape))
    threads = f"{last.threads} thread{'s' if last.threads > 1 else ''}"
    return [f"Times: PyTorch's faster layout against the sparse engine; input {shape}, {last.processor}, {threads}."]


def _fastest(result: BenchResult) -> tuple[Timing, Timing] | None:
    layouts = [one for one in result.timings if one.name.startswith(_TORCH)]
    engine = next((one for one in result.timings if one.name == ENGINE), None)
    if not layouts or engine is None:
        return None
    return min(layouts, key=lambda one: one.median), engine


def _accuracy(cell: Cell) -> str:
    spread = "" if cell.reached.deviation is None else f" ± {100 * cell.reached.deviation:.1f}"
    many = f" ({cell.reached.n} seeds)" if cell.reached.n > 1 else ""
    return f"{100 * cell.reached.mean:.1f}{spread} %{many}"


def _counts(what: str, size: int, kept: int) -> tuple[TableCell, ...]:
    return plain_row(what, f"{size:,}", f"{kept:,}", _times(size / max(1, kept), "fewer"))


def _times(ratio: float, than: str) -> str:
    return "the same" if abs(ratio - 1) < 0.005 else f"{ratio:.1f} times {than}"
