"""The code that the pages show: its blocks, in order, and how they are run.

A comment before a block says what is special about it: `<!-- not run: REASON -->` (REASONS; it is then only read),
`<!-- needs: PACKAGE ... -->` (not run where one is missing), `<!-- slow -->` (run by a slow test only).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from cli import main
from cli.main import sparsify as command_group

ROOT = Path(__file__).parents[1]
REASONS = (
    "needs a network",
    "needs CUDA",
    "needs CIFAR-100",
    "needs hours",
    "needs minutes",
    "needs several processes",
    "needs Slurm",
    "yours",
    "an example of output",
)
# What is no command of sparsify: installing, other tools; tests and builds have tests of their own.
ELSEWHERE = (
    "pip",
    "hf",
    "git",
    "make",
    "source",
    "ruff",
    "mypy",
    "pytest",
    "zensical",
    "tensorboard",
    "torchrun",
    "accelerate",
)
# A page's training as a short one, of a small network.
SHORT = ["--device", "cpu", "--set", "train.max_steps=10", "--set", "data.batch_size=40"]
SMALL = {
    "timm:vgg19_bn": "timm:test_resnet",
    "cifar:resnet56": "cifar:resnet20",
    "prune.criterion=synflow": "prune.criterion={name: synflow, rounds: 5}",
}


class Block(NamedTuple):
    """A block of code as it stands in a page."""

    language: str
    code: str
    line: int
    note: str

    @property
    def reason(self) -> str | None:
        """Why it is not run, if the page says so."""
        told = re.fullmatch(r"not run: (.+)", self.note)
        if told and told[1] not in REASONS:
            raise AssertionError(f"line {self.line}: '{told[1]}' is none of {REASONS}")
        needed = re.fullmatch(r"needs: (.+)", self.note)
        missing = [name for name in needed[1].split() if find_spec(name) is None] if needed else []
        return told[1] if told else f"{missing[0]} is not installed" if missing else None

    @property
    def slow(self) -> bool:
        """Whether only a slow test runs it."""
        return self.note == "slow"


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page that name their language."""
    text = page.read_text()
    found = re.finditer(r"(?:^<!-- (?P<note>.+?) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", text, re.M | re.S)
    return [
        Block(one["language"], one["code"], text.count("\n", 0, one.start("code")) + 1, one["note"] or "")
        for one in found
    ]


def commands_of(code: str) -> list[list[str]]:
    """Return the words of each command of a block of shell."""
    lines = [
        line for whole in code.replace("\\\n", " ").splitlines() for line in whole.split(" #")[0].split("&&") if line
    ]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def understood(words: list[str]) -> None:
    """Fail unless the command line takes these words of a command of sparsify."""
    args = words[1:]
    with command_group.make_context("sparsify", list(args)) as context:
        name, command, rest = command_group.resolve_command(context, list(args))
        assert name is not None and command is not None
        command.make_context(name, rest, parent=context)


def run_page(page: Path, slow: bool = False) -> list[str]:
    """Run the blocks of `page` in the working directory, in order; return why some were only read."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    left = []
    for block in blocks_of(page):
        reason = block.reason or ("slow" if block.slow and not slow else None)
        if reason:
            left.append(f"line {block.line}: {reason}")
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if not reason:
                exec(code, scope)
        elif block.language == "sh":
            for words in commands_of(block.code):
                _run(words, reason is not None)
    return left


def _run(words: list[str], read_only: bool) -> None:
    if words[0] == "python":
        if not read_only:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, env=environment)
    elif words[0] == "sparsify":
        if "--help" not in words:
            try:
                understood(words[: words.index(">")] if ">" in words else words)
            except click.ClickException as error:
                raise AssertionError(f"{shlex.join(words)}: {error.format_message()}") from None
        if not read_only:
            _sparsify(words[1:])
    else:
        assert words[0] in ELSEWHERE, words


def _sparsify(words: list[str]) -> None:
    out = None
    if ">" in words:
        out = Path(words[words.index(">") + 1])
        words = words[: words.index(">")]
    if words[0] == "train":
        words = [SMALL.get(word, word) for word in words]
        words += [] if "--resume" in words else SHORT
        words += [] if {"--resume", "--plugin"} & {*words} else ["--set", "data.limit=200"]
    if words[0] == "bench":
        words = [*words, "--rounds", "2", "--skip", "torch.compile", "--skip", "onnxruntime"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        if out is not None:
            patch.setattr(sys, "stdout", out.open("w"))
        main(words)
    assert caught.value.code in (0, None), f"sparsify {shlex.join(words)}: exit code {caught.value.code}"
