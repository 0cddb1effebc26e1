"""The room needs no package of another trainer until one of its callbacks is used."""

import subprocess
import sys

import pytest

import sparsify.integrations
from sparsify.errors import SparsifyError


def test_importing_the_room_and_the_loop_imports_no_trainer() -> None:
    code = "import sys, sparsify.integrations as i; i.LoopPruning; "
    code += "sys.exit(bool({'transformers', 'lightning', 'pytorch_lightning', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("HuggingFaceCallback", "transformers", "hf"), ("LightningCallback", "lightning", "lightning")],
)
def test_a_missing_package_is_one_line(name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.startswith(f"sparsify.integrations.{_home(name)}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(vars(sparsify.integrations), name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Missing(package, "pytorch_lightning"), *sys.meta_path])
    for module in [m for m in sys.modules if m.partition(".")[0] in (package, "pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SparsifyError, match=rf"{name} needs {package}, .*'sparsify-torch\[{extra}\]'"):
        getattr(sparsify.integrations, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'KerasCallback'"):
        _ = sparsify.integrations.KerasCallback


class _Missing:
    def __init__(self, *packages: str) -> None:
        self.packages = packages

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def _home(name: str) -> str:
    return sparsify.integrations._HOME[name].strip(".")
