"""Converted models under DistributedDataParallel, two processes over gloo."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed, nn

from sparsify import convert, get_masks, set_masks

pytestmark = [pytest.mark.slow, pytest.mark.sample]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(8, 8), layer, nn.Flatten(), nn.Linear(24, 2))


def masked_network() -> nn.Sequential:
    model = network()
    convert(model)
    generator = torch.Generator().manual_seed(1)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})
    return model


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = masked_network()
    if rank == 1:  # rank 0's masks are broadcast before each forward, as all buffers are
        set_masks(model, {name: torch.ones_like(mask) for name, mask in get_masks(model).items()})
    wrapped = nn.parallel.DistributedDataParallel(model)
    inputs = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(2))
    wrapped(inputs[2 * rank : 2 * rank + 2]).pow(2).mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save({"gradients": gradients, "masks": get_masks(model)}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_gradients_under_ddp_equal_those_of_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    model = masked_network()
    inputs = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(2))
    model(inputs).pow(2).mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, mask in get_masks(model).items():
            assert torch.equal(found["masks"][name], mask)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad)
            if name in found["masks"]:
                assert not found["gradients"][name][~found["masks"][name]].any()
