"""Read mutated recipes, checkpoints and masks: each must raise SparsifyError or give a consistent result.

    python -m benchmarks.fuzz_input SECONDS [--seed 0]

The three share the seconds; `benchmarks.fuzz_format` does the same with files of models. Half of the mutations of
files have matching checksums. A failure leaves fuzz-failure behind, and ends the program.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import sparsify
from sparsify.surgery.mask_state.masks import get_masks
from sparsify.training.folder.checkpoint import read_state, read_step, write_state
from sparsify.training.recipe.read import parse_recipe, read_recipe
from sparsify.training.recipe.yaml_lines import parse_yaml

from .fuzz_format import valid_model
from .mutations import Bytes, mutated, sealed
from .record import environment, record

RECIPES = Path(__file__).parents[1] / "recipes"
_LONGEST_SECONDS = 20.0
_WORDS: tuple[str, ...] = (
    "!!int ''",
    "!!python/object:os.system x",
    "&a [*a]",
    "*a",
    "{",
    "]",
    "-1",
    "0",
    "1e400",
    ".nan",
    "null",
)
_WORDS += ("2/3", "9" * 400, "a" * 400, "'\\0'", "[]", "{}", "[1, [2]]", "{name: x}", "../x", "50%", "10it", "|\n  x")
Target = Callable[[Bytes], bool]


def recipes(folder: Path) -> Target:
    """Return a function that reads a shipped recipe with some lines and values changed."""
    texts = [path.read_text() for path in sorted(RECIPES.rglob("*.yaml"))]
    path = folder / "recipe.yaml"

    def one_input(draw: Bytes) -> bool:
        """Return True if a recipe with a few changed lines is read; raises SparsifyError if not."""
        lines = draw.one_of(texts).splitlines()
        for _ in range(1 + draw.number(4)):
            position = draw.number(len(lines))
            key, colon, _ = lines[position].partition(":")
            change = draw.number(5)
            if change == 0:
                lines[position : position + 1] = []
            elif change == 1:
                lines.insert(position, draw.one_of(draw.one_of(texts).splitlines()))
            elif change == 2:
                place = draw.number(len(lines[position]) + 1)
                lines[position] = f"{lines[position][:place]}{chr(draw.number(300))}{lines[position][place:]}"
            else:
                lines[position] = f"{key}{colon} {draw.one_of(_WORDS)}"
            lines = lines or [""]
        path.write_bytes("\n".join(lines).encode())
        recipe = read_recipe(path)
        again = parse_recipe(parse_yaml(recipe.to_yaml(), "recipe").value)
        assert again == recipe, "its YAML is read as another recipe"
        return True

    return one_input


def checkpoints(folder: Path) -> Target:
    """Return a function that reads a changed checkpoint."""
    path = folder / "checkpoint"
    tensors = [torch.randn(3, 4), torch.zeros(0), torch.ones(5, dtype=torch.bool), torch.arange(7)]
    state = {"step": 3, "list": tensors, "deep": {"a": (1, 2.5, None), 4: {"x": torch.float16}}, "text": "é"}
    write_state(path, state)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")

    def one_input(draw: Bytes) -> bool:
        """Return whether a checkpoint with changed bytes or state is read; raises SparsifyError if it is refused."""
        if draw.number(2):
            content = bytearray(whole)
            for _ in range(1 + draw.number(3)):
                content[draw.number(len(content))] = draw.number(256)
            content = content[: len(content) - draw.one_of((0, 0, 1, 8, len(content) // 2))]
            good = False
        else:
            header: dict[str, Any] = json.loads(whole[8:start])
            text = header["__metadata__"]["state"]
            place = draw.number(len(text))
            word = draw.one_of((*_WORDS, "dict", "tensor", "list", '"', "[", "state/step", "state"))
            header["__metadata__"]["state"] = text[:place] + word + text[place + draw.number(12) :]
            content, good = bytearray(sealed(header, whole[start:])), True
        path.write_bytes(content)
        step = read_step(path)
        assert step is None or isinstance(step, int)
        found = read_state(path)
        assert good or bytes(content) == whole, "an altered checkpoint was accepted"
        return isinstance(found, dict)

    return one_input


def masks(folder: Path) -> Target:
    """Return a function that loads changed masks into a model, which must not change if they are refused."""
    model, path = valid_model(), folder / "masks"
    sparsify.save(model, path, format="masks")
    whole, before = path.read_bytes(), get_masks(model)

    def one_input(draw: Bytes) -> bool:
        """Return True if changed masks are loaded; raises SparsifyError if not."""
        content, good = mutated(whole, draw)
        path.write_bytes(content)
        sparsify.set_masks(model, before)
        try:
            sparsify.load_masks(path, model)
        except sparsify.SparsifyError:
            now = get_masks(model)
            assert all(torch.equal(now[name], mask) for name, mask in before.items()), "refused masks changed a model"
            raise
        assert good or content == whole, "altered masks were accepted"
        return True

    return one_input


def fuzz(name: str, one_input: Target, seconds: float, generator: random.Random) -> str:
    """Read mutations for so many seconds; return a line with the numbers refused and accepted."""
    counts, until = {True: 0, False: 0}, time.monotonic() + seconds
    while time.monotonic() < until:
        data, begun = generator.randbytes(160), time.process_time()
        try:
            accepted = one_input(Bytes(data))
        except sparsify.SparsifyError as error:
            assert "\n" not in str(error), error
            accepted = False
        except BaseException:
            Path("fuzz-failure").write_text(f"{name} {data.hex()}")
            raise
        assert time.process_time() - begun < _LONGEST_SECONDS, data.hex()
        counts[accepted] += 1
    return f"{name}: {counts[False]:,} refused in one line, {counts[True]:,} accepted that hold together"


def main() -> None:
    """Fuzz for the seconds asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    kinds: tuple[Callable[[Path], Target], ...] = (recipes, checkpoints, masks)
    found = []
    with tempfile.TemporaryDirectory() as work:
        for kind in kinds:
            found.append(fuzz(kind.__name__, kind(Path(work)), given.seconds / len(kinds), generator))
            print(found[-1], flush=True)
    record("fuzz_input", body(found, given.seconds, given.seed))


def body(found: Sequence[str], seconds: float, seed: int) -> str:
    """Return the section of results.md; any failure would have ended the program before."""
    lines = [
        environment("torch", threads=1),
        "",
        f"Mutated recipes, checkpoints and masks, read for {seconds:.0f} s by the clock (seed {seed}); of those of "
        "files half have good checksums. Each was refused in one line, within its time and with nothing changed, or is "
        "whole: a recipe whose YAML is read as the same recipe, a state, masks that fit the model.",
        "",
    ]
    return "\n".join([*lines, *(f"- {line}" for line in found)])


if __name__ == "__main__":
    main()
