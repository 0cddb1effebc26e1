"""All models of the table by name: their library, then what they are."""

from __future__ import annotations

from .diffusion import DIFFUSION
from .example import Builder
from .language import LANGUAGE
from .layers import LAYERS
from .perception import PERCEPTION
from .vision import VISION

ALL: dict[str, Builder] = {**LANGUAGE, **PERCEPTION, **DIFFUSION, **VISION, **LAYERS}
