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
    name = "写真\u30001\u00a0Mo می\u200cخواهم 👩\u200d🔬.png"  # blanks and joiners of people's file names
    assert str(SparsifyError(name)) == name
    assert str(SparsifyError("gpj\u202e.exe")) == r"gpj\u202e.exe"  # it would turn the letters' order around


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for read in (sparsify.load, sparsify.read_recipe, read_plugin, preprocess.read):
        with pytest.raises(SparsifyError, match="not a regular file"):
            read(pipe)


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_texts_may_come_from_the_shell(folder: str) -> None:
    if not os.path.isdir(folder):
        pytest.skip("the system has other paths for pipes of a shell")

    def piped(text: bytes) -> str:
        reading, writing = os.pipe()
        os.write(writing, text)
        os.close(writing)
        opened.append(reading)
        return f"{folder}/{reading}"

    opened: list[int] = []
    try:
        assert sparsify.read_recipe(piped(b"model: cifar:resnet20\ndata: digits\n")).model.name == "cifar:resnet20"
        assert list(read_plugin(piped(b"CRITERIA = {'mine': abs}")).criteria) == ["mine"]
        with pytest.raises(SparsifyError, match="not a regular file"):
            sparsify.load(piped(b""))
    finally:
        for reading in opened:
            os.close(reading)


def test_a_device_is_refused_and_not_read_for_ever() -> None:
    for read in (sparsify.read_recipe, read_plugin, preprocess.read):
        with pytest.raises(SparsifyError, match="not a regular file"):
            read("/dev/zero")
