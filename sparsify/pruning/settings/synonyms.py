"""Names that other tools use, so that errors can suggest ours. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import SparsifyError, unknown

# What is named -> {another word: our name}.
SYNONYMS: dict[str, dict[str, str]] = {
    "criterion": dict.fromkeys(("l1", "l2", "l1_norm", "l2_norm", "l1norm", "l2norm", "abs", "weight"), "magnitude")
    | dict.fromkeys(("bn", "batchnorm", "slimming", "network_slimming"), "bn_scale")
    | dict.fromkeys(("geometric_median", "gm"), "fpgm")
    | {"obd": "fisher", "hessian": "fisher", "gradient": "snip", "connection_sensitivity": "snip"},
    "granularity": dict.fromkeys(("channel", "channels", "filter", "filters", "neuron", "row", "structured"), "unit")
    | dict.fromkeys(("unstructured", "element", "entry", "fine_grained"), "weight"),
    "scope": {"local": "layer", "layerwise": "layer", "uniform": "layer", "row": "filter", "output": "filter"},
    "schedule": {"polynomial": "cubic", "agp": "cubic", "gradual": "cubic", "once": "one_shot", "oneshot": "one_shot"},
}


def unknown_name(what: str, given: str, names: Iterable[str]) -> SparsifyError:
    """Return the error for a name that is not among `names`; for another tool's name it suggests ours."""
    meant = SYNONYMS.get(what, {}).get(given.lower().replace("-", "_").replace(" ", "_"))
    if meant is None:
        return unknown(what, given, names)
    return SparsifyError(f"unknown {what} '{given}'; did you mean '{meant}'? (known: {', '.join(sorted(names))})")
