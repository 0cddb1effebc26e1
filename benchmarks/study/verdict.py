"""The conclusion of a study in plain words: does the union of masks help, at the end, against the better baseline?"""

from __future__ import annotations

from collections.abc import Sequence

from .compare import Difference, difference, mean_of, values
from .rows import Row
from .study import Study


def conclusion(study: Study, rows: Sequence[Row]) -> str:
    """Return one paragraph: for each model and sparsity the first union method against the better baseline."""
    sentences = [
        sentence
        for model in study.models
        for sparsity in study.sparsities
        if (sentence := _sentence(study, rows, model, sparsity))
    ]
    return " ".join(["Does the union help, after equal steps, at the final sparsity?", *sentences]) if sentences else ""


def _sentence(study: Study, rows: Sequence[Row], model: str, sparsity: float) -> str:
    def found(method: str, column: str) -> dict[str, float]:
        return values(rows, (model, method, str(sparsity)), column)

    where = f"{model} at {100 * sparsity:g} %"
    union = found(study.unions[0], "final_accuracy")
    baselines = {method: found(method, "final_accuracy") for method in study.baselines}
    # Baselines are compared on the seeds that the union has: otherwise an easy seed might choose between them.
    paired = {m: mean_of({seed: v for seed, v in b.items() if seed in union}) for m, b in baselines.items()}
    known = {method: mean.mean for method, mean in paired.items() if mean}
    if not known:
        return ""
    better = max(known, key=lambda method: known[method])
    final = difference(union, baselines[better])
    best = difference(found(study.unions[0], "best_accuracy"), found(better, "best_accuracy"))
    assert final is not None and best is not None
    lacking = [method for method in study.baselines if method not in known]
    so_far = f" (of {', '.join(lacking)} no run is finished)" if lacking else ""
    return (
        f"{where}: `{study.unions[0]}` against `{better}`, the better baseline{so_far}: {_words(final)}; "
        f"by the best epoch, the study's way, {_words(best)}."
    )


def _words(found: Difference) -> str:
    seeds = f"{found.n} seed{'s' if found.n > 1 else ''}"
    if found.half_width is None:
        return f"{100 * found.mean:+.2f} points on one seed, which tells nothing yet"
    low, high = 100 * (found.mean - found.half_width), 100 * (found.mean + found.half_width)
    verdict = {1: "it helps", -1: "it harms", 0: "no difference can be told"}[found.sign]
    return f"{100 * found.mean:+.2f} points (95 % confidence interval {low:+.2f} to {high:+.2f}, {seeds}): {verdict}"
