"""Commands on a model of transformers that takes tokens, built from a folder's configuration."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome

Run = Callable[..., Outcome]
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 40,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(GPT2))
    return tmp_path / "tiny"


@pytest.mark.slow
def test_convert_shrinks_and_other_commands_take_the_file(sparsify: Run, folder: Path, tmp_path: Path) -> None:
    spec, out = f"transformers:{folder}", tmp_path / "a.safetensors"
    prune = ["--sparsity", "0.5", "--granularity", "unit", "--shrink"]
    code, said, err = sparsify("convert", "--model", spec, *prune, "--out", out)
    assert code == 0, err
    assert "weights: fresh" in said and "for one input of input_ids 12:" in said and "sparsify train" not in said
    (folder / "config.json").unlink()
    code, said, err = sparsify("bench", out, "--rounds", 2, "--skip", "torch.compile", "--skip", "onnxruntime")
    assert code == 0 and "1 input of input_ids 12" in said, err
    code, said, err = sparsify("export", out, "--out", tmp_path / "a.pt2")
    assert code == 0 and (tmp_path / "a.pt2").is_file(), err


def test_wrong_folder_is_one_line(sparsify: Run, folder: Path, tmp_path: Path) -> None:
    given = f"transformers:{folder.parent}/tinny"
    code, out, err = sparsify("convert", "--model", given, "--out", tmp_path / "a.safetensors")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"there is no folder '{folder.parent}/tinny'; did you mean 'transformers:{folder}'?" in err
