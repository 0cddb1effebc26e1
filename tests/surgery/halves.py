import torch
from torch import nn

from sparsify.surgery.channels.analyse import Channels


def zero_half(model: nn.Module, found: Channels) -> int:
    """Make a random half of a model's groups zero, in place, and return how many that are."""
    gone = torch.rand(found.groups) < 0.5
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, d in found.produced.items():
            labels = found.labels[name][d]
            sizes = [1] * parameters[name].dim()
            sizes[d] = -1
            parameters[name].masked_fill_(((labels >= 0) & gone[labels.clamp(min=0)]).reshape(sizes), 0)
    return int(gone.sum())
