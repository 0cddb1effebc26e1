"""Every mistake of a user ends in one line and exit code 2, before torch is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/union_mask.yaml"
# What was written -> what the one line has to say.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "command": (["trian", RECIPE], ["unknown command 'trian'", "did you mean 'train'"]),
    "option": (["train", RECIPE, "--sed", "1"], ["--sed"]),
    "number": (["train", RECIPE, "--seed", "one"], ["--seed", "one"]),
    "no recipe": (["train"], ["RECIPE"]),
    "missing recipe": (["train", "recipes/union_maks.yaml"], ["no such recipe", "union_mask.yaml"]),
    "recipe that is not YAML": (["train", "LICENSE"], ["LICENSE"]),
    "recipe that is a folder": (["train", "recipes"], ["recipes"]),
    "model": (["train", RECIPE, "--model", "timm:resnt18"], ["--model timm:resnt18", "did you mean 'timm:resnet18'"]),
    "model without prefix": (["train", RECIPE, "--model", "resnet18"], ["'timm:resnet18'"]),
    "data": (["train", RECIPE, "--data", "cifar101"], ["--data cifar101", "cifar10"]),
    "device": (["train", RECIPE, "--device", "gpu"], ["--device gpu: 'gpu' is no device", "cuda:N"]),
    "key": (["train", RECIPE, "--set", "prune.sparsty=0.9"], ["prune.sparsty", "did you mean 'sparsity'"]),
    "override without value": (["train", RECIPE, "--set", "prune.sparsity"], ["section.key=value"]),
    "sparsity": (["train", RECIPE, "--set", "prune.sparsity=1.5"], ["prune.sparsity", "1.5", "[0, 1]"]),
    "optimiser": (["train", RECIPE, "--set", "train.optimizer.name=sdg"], ["sdg"]),
    "n:m": (["train", RECIPE, "--set", "prune.granularity=4:2"], ["n is less than m", "did you mean 2:4?"]),
    "n:m and scope": (["train", RECIPE, "--set", "prune.granularity=2:4"], ["not in scope 'global'; use 'layer'"]),
    "block": (
        ["convert", "--model", "cifar:resnet20", "--granularity", "0x4", "--out", "x"],
        ["--granularity: (0, 4)"],
    ),
    "criterion": (["train", RECIPE, "--set", "prune.criterion=magnitud"], ["magnitud", "did you mean 'magnitude'"]),
    "criterion of others": (["train", RECIPE, "--set", "prune.criterion=l1"], ["'l1'; did you mean 'magnitude'?"]),
    "granularity of others": (["train", RECIPE, "--set", "prune.granularity=channel"], ["did you mean 'unit'?"]),
    "sparsity in per cent": (["train", RECIPE, "--set", "prune.sparsity=90%"], ["prune.sparsity", "did you mean 0.9?"]),
    "sparsity in per cent for convert": (
        ["convert", "--model", "cifar:resnet20", "--sparsity", "90", "--out", "x"],
        ["--sparsity: '90' is no sparsity", "did you mean 0.9?"],
    ),
    "a rule of nothing": (
        ["train", RECIPE, "--set", "prune.rules=[{match: fc}]"],
        ["rules.0: says nothing but 'match'"],
    ),
    "missing weights": (["train", RECIPE, "--set", "model.checkpoint=missing.pt"], ["missing.pt"]),
    "resume nothing": (["train", "--resume", "runs/nothing-here"], ["no such run"]),
    "resume a folder": (["train", "--resume", "tests"], ["not a run"]),
    "resume and recipe": (["train", RECIPE, "--resume", "runs/a"], ["leave out the recipe"]),
    "resume and settings": (["train", "--resume", "runs/a", "--seed", "2"], ["leave out --seed"]),
    "export without out": (["export", "runs/a"], ["--out"]),
    "export nothing": (["export", "runs/nothing-here", "--out", "x"], ["no such file or run"]),
    "inspect nothing": (["inspect"], ["RUN or FILE"]),
    "inspect a missing file": (["inspect", "missing.safetensors"], ["no such file or run"]),
    "inspect a foreign file": (["inspect", "LICENSE"], ["LICENSE"]),
    "inspect a folder": (["inspect", "tests"], ["without a run"]),
    "inspect a repository without owner": (["inspect", "hf:resnet20"], ["written hf:OWNER/NAME or hf:OWNER/NAME@REV"]),
    "inspect a repository as others write it": (
        ["inspect", "https://huggingface.co/a/b/tree/main"],
        ["did you mean 'hf:a/b'?"],
    ),
    "inspect a repository of no valid name": (["inspect", "hf:a--b/c.."], ["hf:a--b/c..: no name that a repository"]),
    "inspect a model": (["inspect", "--model", "timm:resnt18"], ["did you mean 'timm:resnet18'"]),
    "eval device": (["eval", "LICENSE", "--device", "gpu"], ["--device: 'gpu' is no device", "cuda:N"]),
    "export format": (["export", "LICENSE", "--out", "x", "--format", "spares"], ["--format", "'sparse'"]),
    "export dtype": (["export", "LICENSE", "--out", "x", "--dtype", "float12"], ["--dtype", "float16"]),
    "export nowhere": (["export", "LICENSE", "--out", "nowhere/x"], ["cannot write nowhere/x", "no folder"]),
    "export onto a folder": (["export", "LICENSE", "--out", "tests"], ["cannot write tests", "not empty"]),
    "export a folder onto a file": (
        ["export", "LICENSE", "--out", "README.md", "--format", "compressed-tensors"],
        ["cannot write README.md", "not a folder"],
    ),
    "export a folder onto a full one": (
        ["export", "LICENSE", "--out", "tests", "--format", "compressed-tensors"],
        ["cannot write tests", "not empty"],
    ),
    "export onnx cast": (
        ["export", "LICENSE", "--out", "x", "--format", "pt2", "--dtype", "float16"],
        ["export: pt2 takes no --dtype", "sparse, engine, dense"],
    ),
    "export sparse of a batch": (
        ["export", "LICENSE", "--out", "x", "--batch-size", "2"],
        ["export: sparse takes no --batch-size", "onnx, pt2"],
    ),
    "import nothing": (["import", "missing.safetensors", "--out", "x"], ["cannot read missing.safetensors"]),
    "import a foreign file": (["import", "LICENSE", "--out", "x"], ["LICENSE: not a safetensors file"]),
    "import a folder": (["import", "tests", "--out", "x"], ["tests: a folder with no safetensors file"]),
    "import nowhere": (["import", "LICENSE", "--out", "nowhere/x"], ["cannot write nowhere/x"]),
    "import without out": (["import", "LICENSE"], ["--out"]),
    "convert nowhere": (["convert", "--model", "timm:resnet18", "--out", "nowhere/x"], ["cannot write nowhere/x"]),
    "convert onto a folder": (["convert", "--model", "timm:resnet18", "--out", "tests"], ["cannot write tests"]),
    "convert a folder": (["convert", "tests", "--model", "timm:resnet18", "--out", "x"], ["tests: a folder without"]),
    "a key in capitals": (["train", RECIPE, "--set", "DATA.limit=3"], ["DATA: unknown key; did you mean 'data'?"]),
    "an empty folder's name": (["train", RECIPE, "--out", ""], ["train: --out is given, and empty"]),
    "convert to no classes": (
        ["convert", "--model", "cifar:resnet20", "--num-classes", "0", "--out", "x"],
        ["--num-classes", "0 is not in the range x>=1"],
    ),
    "eval nothing": (["eval", "missing.safetensors"], ["no such file or run"]),
    "convert without model": (["convert", "weights.pt", "--out", "x"], ["--model"]),
    "convert a model": (["convert", "--model", "timm:resnt18", "--out", "x"], ["did you mean 'timm:resnet18'"]),
    "convert nothing": (["convert", "missing.pt", "--model", "timm:resnet18", "--out", "x"], ["missing.pt"]),
    "convert sparsity": (["convert", "--model", "timm:resnet18", "--sparsity", "1.5", "--out", "x"], ["1.5", "[0, 1]"]),
    "convert scope": (
        ["convert", "--model", "timm:resnet18", "--scope", "globl", "--out", "x"],
        ["--scope: ", "'global'"],
    ),
    "convert round": (
        ["convert", "--model", "timm:resnet18", "--round-to", "8", "--out", "x"],
        ["--round-to belongs to --shrink"],
    ),
    "convert dead": (
        ["convert", "--model", "timm:resnet18", "--dead", "zeros", "--out", "x"],
        ["convert: --dead belongs to --shrink"],
    ),
    "export dead": (["export", "x", "--dead", "masks", "--out", "y"], ["export: --dead belongs to --shrink"]),
    "convert grasp": (["convert", "--model", "timm:resnet18", "--criterion", "grasp", "--out", "x"], ["needs data"]),
    "convert snip": (["convert", "--model", "timm:resnet18", "--criterion", "snip", "--out", "x"], ["snip needs data"]),
    "convert masks and sparsity": (
        ["convert", "--model", "timm:resnet18", "--masks", "runs/a", "--sparsity", "0.5", "--out", "x"],
        ["convert: --masks already says which weights to keep; leave out --sparsity"],
    ),
    "convert masks and ignore": (
        ["convert", "--model", "timm:resnet18", "--masks", "runs/a", "--ignore", "last", "--out", "x"],
        ["leave out --ignore"],
    ),
    "convert missing masks": (
        ["convert", "--model", "timm:resnet18", "--masks", "runs/nothing-here", "--out", "x"],
        ["runs/nothing-here: no such file or run"],
    ),
    "export masks in another format": (
        ["export", "LICENSE", "--masks-only", "--format", "dense", "--out", "x"],
        ["either --masks-only or --format dense"],
    ),
    "pattern": (["models", "no-such-network"], ["no model matches"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    name: str, sparsify: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, expected = MISTAKES[name]
    monkeypatch.chdir(ROOT)
    code, out, err = sparsify(*args)
    assert code == 2 and out == ""
    assert err.startswith("sparsify: ") and err.endswith("\n") and err.count("\n") == 1
    for part in expected:
        assert part in err


LONG = 300 * "a"  # no file has a name of more than 255 bytes


@pytest.mark.parametrize(
    "args",
    [
        *(["inspect", LONG], ["export", LONG, "--out", "x"], ["import", LONG, "--out", "x"], ["bench", LONG]),
        *(["eval", LONG], ["eval", "LICENSE", "--data", LONG], ["diff", LONG, LONG], ["predict", LONG, LONG]),
        *(["export", "LICENSE", "--out", LONG], ["export", "LICENSE", "--format", "hub", "--out", LONG]),
        *(["convert", LONG, "--model", "cifar:resnet20", "--out", "x"], ["train", "--resume", LONG]),
        *(["convert", "--model", "cifar:resnet20", "--masks", LONG, "--out", "x"], ["report", LONG], ["compare", LONG]),
        *(["train", LONG], ["train", RECIPE, "--out", LONG], ["sweep", LONG]),
        *(["train", RECIPE, "--data", LONG], ["train", RECIPE, "--data", f"folder:{LONG}"]),
        *(["train", RECIPE, "--plugin", f"{LONG}.py"], ["train", RECIPE, "--set", f"model.checkpoint={LONG}"]),
    ],
    ids=lambda args: " ".join(args).replace(LONG, "LONG"),
)
def test_a_name_that_no_file_can_have_is_one_line(
    args: list[str], sparsify: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = sparsify(*args)
    assert code == 2 and out == "" and err.startswith("sparsify: ") and err.count("\n") == 1


QUICK = [["--help"], ["train", "--help"], ["models", "timm:vgg*"], ["recipe-schema"], ["--version"]]


@pytest.mark.parametrize("args", [*QUICK, *(args for args, _ in MISTAKES.values())], ids=" ".join)
def test_help_and_mistakes_import_no_torch(args: list[str]) -> None:
    code = (
        "import sys\nsys.path.insert(0, '.')\nfrom cli import main\n"
        f"try:\n    main({args!r})\nfinally:\n    assert not {{'torch', 'timm', 'torchvision'}} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (0 if args in QUICK else 2)


def test_help_of_every_command_fits_80_columns(
    sparsify: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [line.split()[0] for line in sparsify("--help").out.partition("Commands:\n")[2].splitlines()]
    shown = "train convert export import inspect eval predict bench sweep report compare diff models recipe-schema"
    assert names == shown.split()
    for name in names:
        code, out, _ = sparsify(name, "--help")
        assert code == 0 and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("given", [["eval", "~/here"], ["train", "--resume=~/here"], ["inspect", "~/here"]])
def test_a_tilde_that_the_shell_leaves_means_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome], given: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = sparsify(*given)
    assert outcome.code == 2 and f"{tmp_path}/here" in outcome.err


def test_a_removed_working_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsify: Callable[..., Outcome]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert sparsify("models") == (2, "", "sparsify: the working folder was removed; change to another one\n")


def test_our_own_bugs_show_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli import main
    from sparsify import models

    def broken(pattern: str | None) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(models, "list_models", broken)
    with pytest.raises(ZeroDivisionError):
        main(["models"])


@pytest.mark.parametrize("how", [["-m", "sparsify.cli"], ["-c", "from sparsify.cli import main; main()"]])
def test_the_command_line_is_found_in_a_clone_and_elsewhere(how: list[str], tmp_path: Path) -> None:
    for folder in (ROOT, tmp_path):
        done = subprocess.run([sys.executable, *how], cwd=folder, capture_output=True, text=True, check=False)
        assert done.stdout.startswith("Usage: sparsify") or done.stderr.startswith("Usage: sparsify"), done.stderr
