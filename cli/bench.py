"""sparsify bench"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from sparsify.errors import RunError, SparsifyError
from sparsify.hardware import MOST_THREADS

from .paths import saved_model
from .start_model import image_shape, usual_size
from .view.show import count, percent, print_table, say
from .view.shrinking import example_inputs, sizes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from sparsify.calls import Inputs
    from sparsify.pruning.settings.prune import Pruning
    from sparsify.runtime.engine import Engine

_CHARTS = (".pdf", ".png", ".svg")


@click.command("bench")
@click.argument("source", metavar="[RUN|FILE|hf:OWNER/NAME]", required=False)
@click.option("--model", "spec", metavar="SPEC", help="A fresh model in place of a file: timm:NAME, cifar:NAME, ...")
@click.option(
    "--sparsity",
    metavar="S",
    help="With --model: fraction of each layer that is removed.  [default: 0.9]",
)
@click.option(
    "--batch", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Images in one pass."
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, MOST_THREADS),
    help="Threads of everything timed.  [default: torch's number]",
)
@click.option(
    "--image-size", metavar="N", type=click.IntRange(min=1), help="Pixels.  [default: the file's, or the model's own]"
)
@click.option(
    "--rounds", metavar="N", type=click.IntRange(min=2), default=15, show_default=True, help="Turns that each one gets."
)
@click.option(
    "--skip",
    metavar="NAME",
    type=click.Choice(["torch.compile", "onnxruntime", "shrunk"]),
    multiple=True,
    help="Leave out torch.compile, which takes long to get ready, onnxruntime or the shrunk model; repeatable.",
)
@click.option("--plan", is_flag=True, help="Show how the engine runs each layer, and how long that takes.")
@click.option("--plot", metavar="FILE", help="Draw the slowest layers, PyTorch beside the engine: .png, .svg or .pdf.")
def command(
    source: str | None,
    spec: str | None,
    sparsity: str | None,
    batch: int,
    threads: int | None,
    image_size: int | None,
    rounds: int,
    skip: tuple[str, ...],
    plan: bool,
    plot: str | None,
) -> None:
    """Time a model on sparsify's engine, and on PyTorch and ONNX Runtime beside it.

    All take turns in one process, on the same random images and the same number of threads. The weights are those of a
    file or, with --model, fresh ones, pruned by magnitude layer by layer except the first and the last. If channels of
    a file's model are dead, the model without them is timed too. Timings of a RUN are kept in it, for reports.
    """
    if (source is None) == (spec is None):
        raise SparsifyError("bench: give either a RUN or FILE, or --model SPEC")
    if source is not None and sparsity is not None:
        raise SparsifyError("bench: --sparsity belongs to --model; a file has its own")
    if spec is not None:
        from sparsify.models import check_model_name

        check_model_name(spec, where="--model")
        pruning = _pruning("0.9" if sparsity is None else sparsity)
    if plot is not None:
        _check_chart(plot)
    path = None if source is None else saved_model(source)
    import torch

    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    if path is not None:
        model, shape = _from_file(str(path), image_size)
    else:
        assert spec is not None
        model, shape = _fresh(spec, pruning, image_size)
    _bench(model, (batch, *shape), threads, rounds, skip, plan, plot, source)


def _check_chart(plot: str) -> None:
    """Raise SparsifyError unless a chart can be drawn and written to `plot`."""
    from sparsify.formats.io.atomic import check_writable

    if not plot.lower().endswith(_CHARTS):
        raise SparsifyError(f"--plot {plot}: the name has to end in one of {', '.join(_CHARTS)}")
    if find_spec("matplotlib") is None:
        raise SparsifyError("--plot needs matplotlib: pip install matplotlib")
    check_writable(plot)


def _from_file(path: str, image_size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a file's model, folded, and the shape of one of its inputs."""
    import sparsify
    from sparsify.declared_inputs import declared_inputs
    from sparsify.formats.file.inspection import inspect_file

    about = inspect_file(path).metadata
    model = sparsify.load(path, fold=True).eval()
    say(f"{path}: {about.spec or type(model).__name__}")
    shape = tuple(about.extra.get("input_shape") or ())
    if image_size is None and (shape or declared_inputs(model, 1) is not None):
        return model, shape
    channels, size = (shape[0], shape[-1]) if len(shape) == 3 else (3, usual_size(model, about.spec or ""))
    return model, image_shape(model, (channels, size), image_size)


def _pruning(sparsity: str) -> Pruning:
    from sparsify.pruning.settings.prune import parse_pruning

    try:
        return parse_pruning({"criterion": "magnitude", "scope": "layer", "sparsity": sparsity})
    except SparsifyError as error:
        raise SparsifyError(str(error).replace("pruning.sparsity", "--sparsity")) from None


def _fresh(spec: str, pruning: Pruning, image_size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a pruned model of fresh weights, folded, and the shape of one of its inputs."""
    import torch

    import sparsify
    from sparsify.declared_inputs import declared_inputs

    torch.manual_seed(1)
    model = sparsify.build_model(spec).eval()
    tokens = image_size is None and declared_inputs(model, 1) is not None
    shape = () if tokens else image_shape(model, (3, usual_size(model, spec)), image_size)
    sparsify.convert(model, ignore=["first", "last"])
    sparsify.Pruner(model, pruning, total_steps=0).start()
    say(
        f"{spec}: fresh weights, as the model initialises them; {percent(float(pruning.target))} of each layer's "
        "removed by magnitude, the first and the last left dense"
    )
    return sparsify.fold(model).eval(), shape


def _only_one(inputs: Inputs) -> Tensor:
    """Return the tensor of a model's only input; SparsifyError if it takes several."""
    tensors: list[Tensor] = [one for one in (*inputs.args, *inputs.kwargs.values()) if hasattr(one, "shape")]
    if len(tensors) > 1:
        raise SparsifyError(
            f"bench: the model takes {', '.join(inputs.kwargs)}, and one tensor is timed; use sparsify.compile"
        )
    return tensors[0]


def _bench(
    model: nn.Module,
    shape: Sequence[int],
    threads: int,
    rounds: int,
    skip: Sequence[str],
    plan: bool,
    plot: str | None,
    source: str | None = None,
) -> None:
    from .view.bench_kept import keep, without_dead
    from .view.bench_runtimes import SHRUNK, alternated, ready, result_table, spread_lines

    inputs = example_inputs(model, shape[0], tuple(shape[1:]))
    x = _only_one(inputs)
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    zeros, size = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    images = f"{count(shape[0], 'input' if inputs.kwargs else 'image')} of {sizes_of(inputs)}"
    share = f"{percent(zeros / size)} of {count(size, 'weight')} are zero" if size else "no weights"
    say(f"{share}; {images}, {count(threads, 'thread')}")
    small, why = None, ""
    if source is not None:
        small, why = (None, "left out") if SHRUNK in skip else without_dead(str(saved_model(source)), x)
    engine, runtimes, notes = ready(model, x, threads, skip, small)
    seconds = alternated({runtime.name: runtime.run for runtime in runtimes}, rounds)
    print_table(result_table(runtimes, seconds, len(x)))
    say(*notes, *([f"{SHRUNK}: {why}"] if why else []), *spread_lines(seconds))
    if source is not None:
        say(*keep(source, x.shape, threads, seconds))
    if plan or plot is not None:
        _show_steps(engine, x, plan, plot)
    else:
        say("--plan shows how the engine runs each layer, and why")


def _show_steps(engine: Engine, x: Tensor, plan: bool, plot: str | None) -> None:
    """Print how the engine runs each layer, with `plan` also its time; with `plot` draw the slowest layers."""
    from .view.bench_steps import plan_lines, step_table, timed_steps

    (strategy,) = engine.strategies.values()
    say(*plan_lines(strategy))
    if strategy.kind == "torch":
        if plot is not None:
            raise RunError(f"--plot: no steps to draw: the engine leaves the model to PyTorch ({strategy.why})")
        return
    images_at_once, steps = timed_steps(engine, x, strategy)
    title = f"{count(images_at_once, 'image')}, one thread"
    if plan:
        say(f"each step by itself, {title}:")
        print_table(step_table(steps))
    if plot is not None:
        from .view.bench_plot import bars, draw

        all_seconds = sum(step.seconds for step in steps)
        shown = bars(engine, x, strategy, steps)
        draw(shown, all_seconds, f"{type(engine.model).__name__}, {title}", plot)
        say(f"{plot}: milliseconds of the {count(len(shown), 'slowest layer')}, PyTorch beside the engine")
