"""How much memory the analysis of dead channels takes: flags are of channels, not of samples or positions."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.dataflow.liveness import Liveness
from sparsify.surgery.recording.ops import Op


class Tokens(nn.Module):
    """Attention by matrix products over patches, with a class token and positions for each sample."""

    def __init__(self, positions: str, width: int = 8) -> None:
        super().__init__()
        self.positions = positions
        self.embed, self.norm, self.qkv = nn.Conv2d(1, width, 2, 2), nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.up, self.down, self.last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 2)
        self.token, self.table = nn.Parameter(torch.ones(1, 1, width)), nn.Parameter(torch.ones(1, width, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.positions == "table":
            y = y + self.table
        y = y.flatten(2).transpose(1, 2)
        if self.positions == "computed":
            y = y + self.table.expand(len(x), -1, -1, -1).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1)
        q, k, v = self.qkv(self.norm(y)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
        y = (q @ k.mT).softmax(-1) @ v
        y = y.unflatten(0, (len(x), 2)).transpose(1, 2).flatten(2)
        return self.last(self.down(self.up(y).relu())[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("positions", ["none", "table", "computed"])
def test_flags_do_not_grow_with_the_batch_or_the_positions(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    visit = Liveness.visit

    def measured(live: Liveness, op: Op) -> None:
        visit(live, op)
        kept = [form for value in op.results for form in (live.flags.get(value), live.known_values.get(value))]
        sizes.extend(form.numel() for form in kept if form is not None)

    monkeypatch.setattr(Liveness, "visit", measured)
    model = Tokens(positions)
    with torch.no_grad():
        model.up.weight[[1, 3]], model.up.bias[[1, 3]] = 0, 0
    channels = analyse(model, torch.randn(16, 1, 16, 16))
    up = channels.labels["up.weight"][0]
    assert channels.dead[up].nonzero().flatten().tolist() == [1, 3]
    assert max(sizes) <= 65 * 8  # tokens * channels, of one sample out of 16; heads * sizes of all samples are fewer
