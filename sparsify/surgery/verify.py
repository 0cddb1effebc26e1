"""verify(): proof of a conversion on an example input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .copies import deep_copy
from .fold import plain_copy
from .masks import MaskedWeight, all_masked_parameters, masked_parameters, set_masks
from .watch import DenseWeights, FusedOperations, tensors, walk

_LARGE = 1 << 12  # entries


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. `None` for a comparison that could not be made; `notes` says why.

    `identical_eval` and `identical_train`: same bits as the model without masks (in train mode with the same seed,
    gradients and buffers included). `live`: weights whose mask is reached by autograd in train or eval mode. `unused`:
    weights that the forward does not use in either mode. `dense`: weights used somewhere without their mask. `leaks`:
    operations that saw a dense weight under random half masks. Further parameters with masks count as weights here.
    """

    identical_eval: bool | None
    identical_train: bool | None
    masked: list[str]
    live: list[str]
    unused: list[str]
    dense: list[str]
    leaks: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def dead(self) -> list[str]:
        """Weights that the forward uses although their mask has no effect."""
        quiet = {*self.live, *self.unused}
        return [name for name in self.masked if name not in quiet]

    @property
    def problems(self) -> list[str]:
        """One line for each thing that is wrong; empty if the conversion holds."""
        lines = []
        if self.identical_eval is False:
            lines.append("the outputs in eval mode differ from the model without masks")
        if self.identical_train is False:
            lines.append("the outputs, gradients or buffers in train mode differ from the model without masks")
        lines += [f"{name}: its mask has no effect" for name in self.dead]
        lines += [f"{name}: used without its mask as well" for name in self.dense]
        return lines + self.leaks

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        if self.problems:
            return "not verified: " + "; ".join(self.problems)
        same = {True: "same bits", None: "not compared"}
        unused = f", {len(self.unused)} not used by the forward" if self.unused else ""
        return (
            f"verified: {same[self.identical_eval]} in eval mode, {same[self.identical_train]} in train mode, "
            f"{len(self.live)} of {len(self.masked)} masks live{unused}, no dense weight seen under half masks"
        )


def verify(model: nn.Module, args: Any = (), kwargs: dict[str, Any] | None = None) -> VerifyReport:
    """Prove a conversion on one input; `model` is not changed, copies of it are run.

    `args` is one tensor or a tuple. With all-ones masks the outputs must equal the plain model's bit for bit, in eval
    mode and, with the same seed, in train mode, gradients and buffers included. Every mask must be reached by autograd
    in train or eval mode, and with random half masks no conv, linear, attention or recurrent operation may see a dense
    weight. Raises whatever the model raises in eval mode; if only train mode fails, that is noted.
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    subject, plain = deep_copy(model), plain_copy(model)
    for tensor in (*subject.parameters(), *plain.parameters()):
        tensor.grad = None
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        return _verify(subject, plain, lambda m: m(*copy.deepcopy(args), **copy.deepcopy(kwargs or {})))


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _verify(subject: nn.Module, plain: nn.Module, run: Callable[[nn.Module], Any]) -> VerifyReport:
    weights = masked_parameters(subject)
    set_masks(subject, {name: torch.ones_like(weight.mask) for name, weight in weights.items()})
    notes: list[str] = []
    with torch.no_grad():
        identical_eval = _same(lambda m: _outputs(run, m, training=False), subject, plain, notes)
    for model in (subject, plain):
        for name, weight in masked_parameters(subject).items():
            model.get_parameter(name).requires_grad_(weight.parameter.is_floating_point())
    identical_train: bool | None = None
    modes = [False]
    try:
        identical_train = _same(lambda m: _trained(run, m), subject, plain, notes)
        modes.append(True)
    except Exception as error:  # noqa: BLE001 - some models cannot run in train mode on such an input (targets, batch of one)
        notes.append(
            f"train mode was not checked: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
    live, reached, dense = set[str](), set[str](), set[str]()
    for training in modes:
        walk(_outputs(run, subject, training=training), weights, live, reached, dense)
    leaks = _leaks(run, subject, modes)
    names = list(weights)
    return VerifyReport(
        identical_eval,
        identical_train,
        names,
        [name for name in names if name in live],
        [name for name in names if name not in live | reached],
        [name for name in names if name in dense and name in live],
        leaks,
        notes,
    )


def _outputs(run: Callable[[nn.Module], Any], model: nn.Module, *, training: bool) -> list[Tensor]:
    torch.manual_seed(0)
    model.train(training)
    return list(tensors(run(model)))


def _trained(run: Callable[[nn.Module], Any], model: nn.Module) -> list[Tensor]:
    """Return the outputs, gradients and buffers of one forward and backward in train mode."""
    outputs = _outputs(run, model, training=True)
    loss = sum(output.float().square().mean() for output in outputs if output.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad if p.grad is not None else torch.zeros(()) for p in model.parameters()]
    masks = {id(weight.mask) for weight in all_masked_parameters(model)}
    buffers = [buffer.clone() for buffer in model.buffers() if id(buffer) not in masks]
    for parameter in model.parameters():
        parameter.grad = None
    return [*(output.detach() for output in outputs), *gradients, *buffers]


def _same(
    compute: Callable[[nn.Module], list[Tensor]], subject: nn.Module, plain: nn.Module, notes: list[str]
) -> bool | None:
    state = {name: value.clone() for name, value in plain.named_buffers()}
    expected, given = compute(plain), compute(subject)
    if _equal(expected, given):
        return True
    for name, value in plain.named_buffers():
        value.copy_(state[name])
    if not _equal(expected, compute(plain)):
        notes.append("the model without masks gives other bits each time: not compared")
        return None
    return False


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    if len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)) for a, b in pairs)


def _bits(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.detach().contiguous().view(integer)


def _leaks(run: Callable[[nn.Module], Any], model: nn.Module, modes: list[bool]) -> list[str]:
    """Run under random half masks and return a line for every operation that saw a dense weight."""
    generator = torch.Generator().manual_seed(0)
    weights = masked_parameters(model)
    set_masks(model, {name: _half(weight, generator) for name, weight in weights.items()})
    watch = DenseWeights(weights)
    for training in modes:
        with watch:
            _outputs(run, model, training=training)
    with torch.no_grad(), FusedOperations(watch):
        _outputs(run, model, training=False)
    return list(dict.fromkeys(watch.found))


def _half(weight: MaskedWeight, generator: torch.Generator) -> Tensor:
    """Return a random mask of half the entries: of few exactly half, since by chance nearly all might stay."""
    count = weight.mask.numel()
    if count > _LARGE:
        return (torch.rand(weight.mask.shape, generator=generator) < 0.5).to(weight.mask.device)
    order = torch.randperm(count, generator=generator)
    return (order < (count + 1) // 2).reshape(weight.mask.shape).to(weight.mask.device)
