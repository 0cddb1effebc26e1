"""The reader of examples/, loaded from its file as a user would run it."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "read_sparsify.py"
_spec = importlib.util.spec_from_file_location("read_sparsify", EXAMPLE)
assert _spec is not None and _spec.loader is not None
read_sparsify = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(read_sparsify)
