from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import sparsify as library
from cli import main


class Outcome(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def sparsify(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process."""

    def run(*args: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small model, pruned to 80 %."""
    path = tmp_path_factory.mktemp("models") / "m.safetensors"
    model = library.build_model("timm:test_resnet", num_classes=10)
    library.convert(model)
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(mask.shape, generator=generator) < 0.2 for name, mask in library.get_masks(model).items()}
    library.set_masks(model, masks)
    about = {"spec": "timm:test_resnet", "arguments": {"num_classes": 10}}
    library.save(model, path, **about, extra={"input_shape": [3, 32, 32]})  # type: ignore[arg-type]
    return path
