"""The callbacks in two processes of gloo, started by torchrun: every one has the same masks, and a run goes on."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]

HUGGING_FACE = """
import os, sys
import torch
import tests.integrations.test_huggingface as t

folder, resume = sys.argv[1], sys.argv[2] == "resume"
given = {"ddp_backend": "gloo", "save_strategy": "steps", "save_steps": 3, "bf16": True}
callbacks = [t.HuggingFaceCallback(t.PRUNING), *([] if resume else [t.Kill(int(sys.argv[2]))])]
trainer = t.make(folder, *callbacks, **given)
try:
    trainer.train(resume_from_checkpoint=resume or None)
except t.Killed:
    pass
assert trainer.args.world_size == 2
torch.save(trainer.model.state_dict(), f"{folder}/{os.environ['RANK']}.pt")
torch.distributed.barrier()
os._exit(0)
"""
LIGHTNING = """
import os, sys
import torch
import tests.integrations.test_lightning as t

folder, resume = sys.argv[1], sys.argv[2] == "resume"
kept = t.L.callbacks.ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
callbacks = [t.LightningCallback(t.PRUNING), *([] if resume else [t.Kill(int(sys.argv[2]))]), kept]
given = {"strategy": "ddp", "devices": 2, "enable_checkpointing": True, "precision": "bf16-mixed", "max_epochs": 4}
trainer, module = t.make(folder, *callbacks, **given), t.Module()
try:
    loader = torch.utils.data.DataLoader(t.X, batch_size=4)
    trainer.fit(module, loader, ckpt_path=f"{folder}/step=3.ckpt" if resume else None)
except t.Killed:
    pass
assert trainer.world_size == 2
torch.save(module.state_dict(), f"{folder}/{os.environ['RANK']}.pt")
torch.distributed.barrier()
os._exit(0)
"""


def states(folder: Path, code: str, stop: str) -> list[dict[str, Any]]:
    """Run `code` in two processes; return the state of the model in each."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(code)
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run([*launch, str(folder), stop], cwd=folder, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "code", "stop"), [("transformers", HUGGING_FACE, "5"), ("lightning", LIGHTNING, "5")]
)
def test_all_processes_have_the_same_masks_and_go_on_to_them(
    package: str, code: str, stop: str, tmp_path: Path
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    whole = states(tmp_path / "whole", code, "1000")
    states(tmp_path / "run", code, stop)
    after = states(tmp_path / "run", code, "resume")
    masks = [key for key in whole[0] if key.endswith("_mask")]
    removed = sum(int((~whole[0][key]).sum()) for key in masks)
    assert masks and removed == sum(whole[0][key].numel() for key in masks) // 2
    for state in (whole[1], *after):
        assert state.keys() == whole[0].keys()
        assert all(torch.equal(state[key], whole[0][key]) for key in state)
