"""The conclusion of a study in plain words: does the union of masks help, at the end, against the better baseline?"""

from __future__ import annotations

from collections.abc import Sequence

from sparsify.report.statistics import Difference, difference, mean_of

from .compare import values
from .rows import Row
from .study import Study


def conclusion(study: Study, rows: Sequence[Row]) -> str:
    """Return one paragraph: for each model and sparsity every union method against the better baseline."""
    sentences = [
        sentence
        for model in study.models
        for sparsity in study.sparsities
        for union in study.unions
        if (sentence := _sentence(study, rows, model, sparsity, union))
    ]
    return " ".join(["Does the union help, after equal steps, at the final sparsity?", *sentences]) if sentences else ""


def _sentence(study: Study, rows: Sequence[Row], model: str, sparsity: float, method: str) -> str:
    def found(name: str, column: str) -> dict[str, float]:
        return values(rows, (model, name, str(sparsity)), column)

    where = f"{model} at {100 * sparsity:g} %"
    union = found(method, "final_accuracy")
    baselines = {baseline: found(baseline, "final_accuracy") for baseline in study.baselines}
    # Baselines are compared on the seeds that the union has: otherwise an easy seed might choose between them.
    paired = {m: mean_of({seed: v for seed, v in b.items() if seed in union}) for m, b in baselines.items()}
    known = {baseline: mean.mean for baseline, mean in paired.items() if mean}
    if not known:
        return ""
    better = max(known, key=lambda baseline: known[baseline])
    final = difference(union, baselines[better])
    best = difference(found(method, "best_accuracy"), found(better, "best_accuracy"))
    assert final is not None and best is not None
    lacking = [baseline for baseline in study.baselines if baseline not in known]
    so_far = f" (of {', '.join(lacking)} no run is finished)" if lacking else ""
    return (
        f"{where}: `{method}` against `{better}`, the better baseline{so_far}: {_words(final)}; "
        f"by the best epoch, the study's way, {_words(best)}."
    )


def _words(found: Difference) -> str:
    seeds = f"{found.n} seed{'s' if found.n > 1 else ''}"
    if found.half_width is None:
        return f"{100 * found.mean:+.2f} points on one seed, which tells nothing yet"
    low, high = 100 * (found.mean - found.half_width), 100 * (found.mean + found.half_width)
    verdict = {1: "it helps", -1: "it harms", 0: "no difference can be told"}[found.sign]
    return f"{100 * found.mean:+.2f} points (95 % confidence interval {low:+.2f} to {high:+.2f}, {seeds}): {verdict}"
