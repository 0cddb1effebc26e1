"""Plugins: a user's Python file, given on the command line or from Python, whose names a recipe can use.

The file is executed. A recipe never names it; the recipe that a run keeps only records its name and SHA-256. It defines
any of three dicts, whose keys recipes can then use as names:

    CRITERIA = {"largest_rows": function}    # as sparsify.pruning.criteria.table says
    SCHEDULES = {"quadratic": function}      # as sparsify.pruning.settings.curves says
    DATASETS = {"flowers": function}         # data.dir, or None -> what `sparsify.train(data=...)` takes
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from ...datasets import DATASETS
from ...errors import SparsifyError, check_regular, did_you_mean, nearest_file, one_line, unknown
from ...pruning.settings.sections import CRITERION_NAMES, SCHEDULE_NAMES

Functions = Mapping[str, Callable[..., Any]]

# The dict in the file -> what its entries are, and the names that are taken.
_KINDS = {
    "CRITERIA": ("criterion", CRITERION_NAMES),
    "SCHEDULES": ("schedule", SCHEDULE_NAMES),
    "DATASETS": ("data set", tuple(DATASETS)),
}


@dataclass(frozen=True)
class Plugin:
    """The functions that a plugin's file defines, by the names that recipes use, and the file's name and SHA-256."""

    name: str
    sha256: str
    criteria: Functions = field(default_factory=dict)
    schedules: Functions = field(default_factory=dict)
    datasets: Functions = field(default_factory=dict)

    def filled(self, prune: Any, where: Callable[..., str]) -> Any:
        """Return a prune section with this file's functions added where it names them, rules included.

        `where(*keys)` returns the place of a key. Raises SparsifyError for a name that neither has.
        """
        if not isinstance(prune, Mapping):
            return prune
        section = dict(prune)
        for key, functions, known in (
            ("criterion", self.criteria, CRITERION_NAMES),
            ("schedule", self.schedules, SCHEDULE_NAMES),
        ):
            given = section.get(key)
            name = given.get("name") if isinstance(given, Mapping) else given
            if not isinstance(name, str) or name in known or not functions:
                continue
            if name not in functions:
                raise unknown(key, name, (*known, *functions), where=where(key))
            own = dict(given) if isinstance(given, Mapping) else {}
            section[key] = {**own, "name": name, "function": functions[name]}
        if isinstance(rules := section.get("rules"), list | tuple):
            inner = enumerate(rules)
            section["rules"] = [self.filled(rule, functools.partial(where, "rules", index)) for index, rule in inner]
        return section


def as_plugin(given: Plugin | str | PathLike[str] | None) -> Plugin | None:
    """Return `given` if it is a plugin or None, else the plugin read from that file."""
    return given if given is None or isinstance(given, Plugin) else read_plugin(given)


def read_plugin(path: str | PathLike[str]) -> Plugin:
    """Execute the file `path` and return what it defines.

    Raises SparsifyError, in one line, for a file that cannot be read or fails, and for invalid dicts. Exceptions that
    its functions raise later become a SparsifyError too.
    """
    path = Path(path)
    try:
        check_regular(path, piped=True)
        source = path.read_bytes()
    except OSError as error:
        guess = None if os.path.exists(path) else nearest_file(path, "*.py")
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise SparsifyError(f"plugin {path}: cannot be read ({error.strerror}){hint}") from None
    digest = hashlib.sha256(source).hexdigest()
    module = _executed(path, source, digest)
    tables = {kind: _table(module, kind, path) for kind in _KINDS}
    if not any(tables.values()):
        wrong = [name for name in vars(module) if name not in _KINDS and did_you_mean(name.upper(), _KINDS)]
        hint = f"; it has '{wrong[0]}'{did_you_mean(wrong[0].upper(), _KINDS)}" if wrong else ""
        raise SparsifyError(f"plugin {path}: defines none of {', '.join(_KINDS)}{hint}")
    return Plugin(path.name, digest, tables["CRITERIA"], tables["SCHEDULES"], tables["DATASETS"])


def _executed(path: Path, source: bytes, digest: str) -> ModuleType:
    module = ModuleType(f"sparsify_plugin_{digest[:16]}")
    module.__file__ = str(path)
    # Dataclasses and pickle look up the module of a class by its name.
    sys.modules[module.__name__] = module
    linecache.checkcache(str(path))
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise _failed(error, path, "") from error
    return module


def _table(module: ModuleType, kind: str, path: Path) -> dict[str, Callable[..., Any]]:
    what, taken = _KINDS[kind]
    table = getattr(module, kind, {})
    if not isinstance(table, Mapping):
        raise SparsifyError(f"plugin {path}: {kind} is a {type(table).__name__}; it is a dict of names and functions")
    functions = {}
    for name, function in table.items():
        if not isinstance(name, str) or not name or ":" in name or "/" in name:
            raise SparsifyError(f"plugin {path}: {kind}: {name!r} is no name; it is a word without ':' and '/'")
        if name in taken:
            raise SparsifyError(f"plugin {path}: {kind}: '{name}' is a {what} already; choose another name")
        if not callable(function):
            raise SparsifyError(f"plugin {path}: {kind}: '{name}' is a {type(function).__name__}, not a function")
        functions[name] = _in_one_line(function, path, f"{what} '{name}': ")
    return functions


def _in_one_line(function: Callable[..., Any], path: Path, what: str) -> Callable[..., Any]:
    """Return `function`, attributes included, with exceptions that name the plugin, the function and the line."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        """Return what `function` returns."""
        try:
            return function(*args, **kwargs)
        except SparsifyError:
            raise
        except Exception as error:
            raise _failed(error, path, what) from error

    return guarded


def _failed(error: BaseException, path: Path, what: str) -> SparsifyError:
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno or 1]
    line = f":{lines[-1]}" if lines else ""
    text = one_line(error.msg if isinstance(error, SyntaxError) else error)
    return SparsifyError(f"plugin {path}{line}: {what}{type(error).__name__}: {text}")
