"""Errors that quote what a user or a file gave."""

import os
from pathlib import Path

import pytest

import sparsify
from sparsify import preprocess
from sparsify.errors import SparsifyError
from sparsify.training.recipe.plugin import read_plugin


@pytest.mark.parametrize("name", ["x\n", "a\r\nb", "a\u2028b", "\x1b]0;title\x07", "\udcff"])
def test_a_message_is_one_printable_line_whatever_it_quotes(name: str, tmp_path: Path) -> None:
    for call in (
        lambda: sparsify.train({"model": "cifar:resnet20", "data": {"name": name}}, out=tmp_path / "run"),
        lambda: sparsify.build_model(f"timm:{name}"),
        lambda: sparsify.load(tmp_path / name),
    ):
        with pytest.raises(SparsifyError) as caught:
            call()
        assert str(caught.value).isprintable()
        assert str(caught.value).encode()


def test_a_message_keeps_what_can_be_printed() -> None:
    assert str(SparsifyError("schön:  two blanks, 図, 'x\ny\x1b'")) == "schön:  two blanks, 図, 'x y\\x1b'"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for read in (sparsify.load, sparsify.read_recipe, read_plugin, preprocess.read):
        with pytest.raises(SparsifyError, match="not a regular file"):
            read(pipe)


def test_a_recipe_may_come_from_the_shell() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"model: cifar:resnet20\ndata: digits\n")
    os.close(writing)
    assert sparsify.read_recipe(f"/dev/fd/{reading}").model.name == "cifar:resnet20"
    os.close(reading)
