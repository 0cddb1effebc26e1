"""`sparsify train` as launchers start it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import ROOT, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

TRAIN = ["train", "recipes/union_mask.yaml", "--model", "timm:test_resnet", "--device", "cpu", "--no-verify"]
TRAIN += ["--set", "data.batch_size=500", "--set", "train.epochs=2", "--set", "prune.every=1it"]


def told_of(variables: dict[str, str]) -> None:
    os.environ.update(variables)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "sparsify: environment: WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "sparsify: environment: OMPI_COMM_WORLD_SIZE is 2"),
    ],
)
def test_a_launchers_variables_without_a_launcher_are_one_line(
    tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    hook = (told_of, variables)
    code, err = run(*TRAIN, "--out", tmp_path / "run", err=tmp_path / "err", hook=hook)
    assert code == 2 and err.startswith(said) and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_recipe_is_said_once_on_a_machine(tmp_path: Path) -> None:
    for local_rank, lines in (("0", 1), ("1", 0)):
        variables = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "2"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
        hook = (told_of, variables)
        code, err = run(*TRAIN, "--set", "train.epoch=2", err=tmp_path / "err", hook=hook)
        assert code == 2 and err.count("\n") == lines


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_start_one_run(tmp_path: Path, launcher: str) -> None:
    port = free_port()
    start = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", port, "-m"]
    if launcher == "accelerate":
        start = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", port]
        start += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m"]
    command = [sys.executable, "-m", *start, "sparsify.cli", *TRAIN, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes: 250 of a batch's 500 images on each") == 1
    assert done.stdout.count("epoch 2/2") == 1 and "Traceback" not in done.stderr
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    assert (tmp_path / "run" / "model.safetensors").exists()


# The command line, in which the second process is killed after a few steps of the first start.
KILLED_ONCE = """
import os, signal, sys
from sparsify.training.run.keeper import Keeper

calls, pause = 0, Keeper.pause

def counted(self):
    global calls
    calls += 1
    if calls == 6 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    pause(self)

Keeper.pause = counted
from sparsify.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_an_elastic_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    script, folder = tmp_path / "killed_once.py", tmp_path / "run"
    script.write_text(KILLED_ONCE)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    start += ["--master-port", free_port(), str(script)]
    train = [*TRAIN, "--set", "train.checkpoint.every=1it", "--set", "train.log_every=1", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*start, *train], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, steps[-1] + 1)) and (folder / "model.safetensors").exists()

    # Another torchrun is no restart of this one: it is refused, at each of its starts.
    again = subprocess.run([*start, *train], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert again.returncode != 0 and again.stderr.count("already holds a run") == 2, again.stderr
