"""Errors that quote what a user or a file gave."""

from pathlib import Path

import pytest

import sparsify
from sparsify.errors import SparsifyError


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
