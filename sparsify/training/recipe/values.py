"""The base class of a recipe's sections, and types of values that several keys share."""

from __future__ import annotations

import re
from os.path import expanduser
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ...datasets import FOLDER, HUB


class Settings(BaseModel):
    """A frozen section: unknown keys are refused, and values are not converted ("3" is no number)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ByName:
    """Annotation of a section that may be written as its name alone: `data: digits` is `data: {name: digits}`."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def long_form(value: Any) -> Any:
            return {"name": value} if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(long_form, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        name: dict[str, Any] = {"type": "string", "enum": list(self.names)} if self.names else {"type": "string"}
        return {"anyOf": [name, handler(schema)]}


Word = Annotated[str, Field(min_length=1)]
# More than any training needs, and small enough that plans computed from it fit memory.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
Share = Annotated[float, Field(ge=0, lt=1)]

DEVICE = r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$"


def known_device(name: str) -> str:
    """Return `name` if it is a valid name of a device; raises ValueError, in one line, if not."""
    if not re.fullmatch(DEVICE, name):
        raise ValueError(f"'{name}' is no device; known: auto, cpu, cuda, cuda:N, xpu, xpu:N, mps")
    return name


Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]

EVERY = r"^[1-9][0-9]{0,8}(it|ep|s|min|h)$"


def known_interval(text: str) -> str:
    """Return `text` if it is a number of steps, epochs or time; raises ValueError, in one line, if not."""
    if not re.fullmatch(EVERY, text):
        raise ValueError(f"'{text:.60}' is no interval; it is written like 500it, 2ep, 30s, 10min or 1h")
    return text


def a_path(text: str) -> str:
    """Return `text` with the home folder for a leading `~`; raises ValueError, in one line, if it is no valid path.

    The path may follow the prefix of a data set, which keeps a shell from replacing the `~`.
    """
    if "\0" in text:
        raise ValueError(f"{text!r:.60} is no path: it has a NUL character")
    prefix = next((one for one in (FOLDER, HUB) if text.startswith(one)), "")
    return prefix + expanduser(text.removeprefix(prefix))
