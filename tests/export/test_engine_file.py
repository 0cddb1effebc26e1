"""Files that hold the fastest strategy of running their model: what is in them, and who else reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export.save import inspect_file, read_state
from sparsify.runtime.tuning.cache import machine
from tests.random_masks import randomly_masked


class Net(nn.Module):
    """A strided convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return y


@pytest.fixture
def masked() -> nn.Module:
    torch.manual_seed(0)
    return randomly_masked(Net(), 0.3)


def test_it_is_the_sparse_file_and_an_entry(masked: nn.Module, tmp_path: Path) -> None:
    x, before = torch.randn(1, 3, 16, 16), torch.get_num_threads()
    sparsify.save(masked, tmp_path / "e", format="engine", example_input=x, batch_size=5, threads=3, extra={"a": 1})
    sparsify.save(masked, tmp_path / "s", extra={"a": 1})
    assert masked.training and torch.get_num_threads() == before
    found, wanted = read_state(tmp_path / "e"), read_state(tmp_path / "s")
    for one, other in ((found.state, wanted.state), (found.masks, wanted.masks)):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    about = inspect_file(tmp_path / "e").metadata
    strategy = about.engine["way"]
    assert about.format == "sparse" and about.extra == {"a": 1} and not wanted.metadata.engine
    assert about.engine == {"machine": machine(), "threads": 3, "shapes": [[5, 3, 16, 16]], "way": strategy}
    assert strategy["kind"] in ("torch", "split", "chunks") and strategy.keys() == {"kind", "images", "dense"}
    loaded = sparsify.load(tmp_path / "e", Net()).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), masked.eval()(x))


def test_what_else_is_written_of_its_model_holds_no_way(masked: nn.Module, tmp_path: Path) -> None:
    sparsify.save(masked, tmp_path / "e", format="engine", example_input=torch.randn(1, 3, 16, 16))
    sparsify.save(sparsify.load(tmp_path / "e", Net()), tmp_path / "again")
    assert not inspect_file(tmp_path / "again").metadata.engine


def test_a_file_cast_to_few_bits_has_an_engine_in_float32(masked: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    sparsify.save(masked, tmp_path / "e", format="engine", example_input=x, dtype="bfloat16")
    found = sparsify.compile(tmp_path / "e", model=Net())(x)
    with torch.no_grad():
        wanted = sparsify.load(tmp_path / "e", Net()).eval()(x)
    assert found.dtype == torch.float32 and (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


class Two(nn.Module):
    """A forward that takes a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, xs: list[Tensor]) -> Tensor:
        y: Tensor = self.fc(xs[0] + xs[1])
        return y


REFUSED: dict[str, tuple[Callable[[], nn.Module], object, str]] = {
    "no example": (Net, None, "save: engine needs an example_input"),
    "not taken": (Net, torch.zeros(1, 4, 16, 16), "save: the model does not take the example_input: "),
    "no batch": (Net, torch.zeros(()), "save: the example_input must be tensors of one batch size"),
    "half": (lambda: Net().bfloat16(), torch.zeros(1, 3, 16, 16), "save: engine takes models whose inputs are float32"),
    "list": (Two, ([torch.zeros(1, 4), torch.ones(1, 4)],), "save: engine takes models whose inputs are float32"),
    "indices": (lambda: nn.Embedding(3, 2), torch.zeros(1, 1, dtype=torch.long), "save: engine takes models whose"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_engine_runs_is_one_line(name: str, tmp_path: Path) -> None:
    make, example, line = REFUSED[name]
    with pytest.raises(SparsifyError, match=f"^{line}[^\n]*$"):
        sparsify.save(make(), tmp_path / "e", format="engine", example_input=example)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("threads", [0, 10**9])
def test_a_number_of_threads_that_no_machine_has_is_one_line(tmp_path: Path, threads: int) -> None:
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(SparsifyError, match=f"^save: threads: {threads} is given; it takes 1 to [0-9]+$"):
        sparsify.save(Net(), tmp_path / "e", format="engine", example_input=x, threads=threads)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SparsifyError, match=f"^compile: threads: {threads} is given; it takes 1 to [0-9]+$"):
        sparsify.compile(Net(), x, threads=threads)
