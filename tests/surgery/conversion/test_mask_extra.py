"""Masks on further parameters: a model with them is the dense model with zeros in these places, bit for bit."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, prune

from sparsify import SparsifyError, convert, fold, get_masks, set_masks, trace, verify
from sparsify.surgery.conversion.mask_extra import mask_also
from sparsify.surgery.mask_state.masks import masked_parameters, masked_weights
from sparsify.surgery.masking.substituted_call import DYNAMO_FOLLOWS
from tests.surgery.conversion.test_convert import Borrowing, Standardised


def further(model: nn.Module) -> list[str]:
    """Name the float parameters that a conversion leaves dense."""
    converted = copy.deepcopy(model)
    convert(converted)
    return [name for name, _ in model.named_parameters() if name not in masked_weights(converted)]


def half_masks(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()}
    set_masks(model, masks)
    return masks


def outputs(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value or () for tensor in outputs(item)]


def run(model: nn.Module, args: tuple[Any, ...], *, training: bool) -> list[Tensor]:
    torch.manual_seed(0)
    return outputs(model.train(training)(*args))


class Separate(nn.Module):
    """Biases of queries and values alone, joined in the forward, as in BEiT; a table that is added; two of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("k_bias", torch.zeros(4))
        self.positions = nn.Parameter(torch.randn(1, 3, 4))
        self.shifts = nn.ParameterList([torch.randn(4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for shift in self.shifts:
            x = x * shift
        return F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4))

    def looked_up(self) -> Tensor:
        return self.table * 2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.looked_up()


class Asking(nn.Module):
    """Calls a method of its child that is not the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.proj = Table(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.child(x)) + self.child.looked_up()  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Control flow on values: its forward cannot be traced, and reads a bias of its child."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale if x.sum() > -1e9 else x
        return self.layer(x) + self.layer.bias  # type: ignore[no-any-return]


def timm_norm(name: str, *args: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm.layers

        return nn.Sequential(nn.Conv2d(3, 4, 3), getattr(timm.layers, name)(*args))

    return build


IMAGE, WORDS = (torch.randn(5, 3, 8, 8),), (torch.randn(2, 3, 4),)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv_transpose": (lambda: nn.ConvTranspose2d(3, 4, 3), IMAGE),
    "linear": (lambda: nn.Linear(8, 5), IMAGE),
    "bilinear": (lambda: nn.Bilinear(4, 4, 3), (*WORDS, *WORDS)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), IMAGE),
    "batch_norm_average": (lambda: nn.BatchNorm2d(3, momentum=None), IMAGE),
    "batch_norm_untracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), IMAGE),
    "sync_batch_norm": (lambda: nn.SyncBatchNorm(3), IMAGE),
    "instance_norm": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), IMAGE),
    "group_norm": (lambda: nn.GroupNorm(3, 3), IMAGE),
    "layer_norm": (lambda: nn.LayerNorm((8, 8)), IMAGE),
    "rms_norm": (lambda: nn.RMSNorm(8), IMAGE),
    "prelu": (lambda: nn.PReLU(3), IMAGE),
    "embedding": (lambda: nn.Embedding(9, 4), (torch.tensor([[0, 3, 8]]),)),
    "attention": (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), WORDS * 3),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), WORDS),
    "lstm": (lambda: nn.LSTM(4, 3, 2, bidirectional=True), WORDS),
    "gru_cell": (lambda: nn.GRUCell(4, 3), (WORDS[0][0],)),
    "batch_norm_act": (timm_norm("BatchNormAct2d", 4), IMAGE),
    "layer_norm_2d": (timm_norm("LayerNorm2d", 4), IMAGE),
    "group_norm_act": (timm_norm("GroupNormAct", 4, 2), IMAGE),
    "rms_norm_2d": (timm_norm("RmsNorm2d", 4), IMAGE),
    "standardised": (lambda: Standardised(3, 4, 3), IMAGE),
    "borrowing": (Borrowing, WORDS),
    "separate": (Separate, WORDS),
    "asking": (Asking, WORDS),
    "branching": (Branching, WORDS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_with_masks_is_the_dense_one_with_zeros(name: str) -> None:
    torch.manual_seed(0)
    make, args = CASES[name]
    dense = make()
    for parameter in dense.parameters():
        parameter.data.uniform_(0.5, 1.5)  # norms start with zeros and ones
    model, names = copy.deepcopy(dense), further(dense)
    convert(model)
    weights, keys, text = list(masked_weights(model)), [*model.state_dict()], repr(dense)
    mask_also(model, names)
    assert sorted(get_masks(model)) == sorted([*weights, *names]) and list(masked_weights(model)) == weights
    assert set(model.state_dict()) == {*keys, *(f"{name}_mask" for name in names)}
    assert repr(model) == text and isinstance(model, type(dense))
    report = verify(model, args)
    assert report.ok and report.identical_eval and report.identical_train, (str(report), report.notes)
    assert report.live == report.masked == list(get_masks(model))
    masks = half_masks(model)
    if name == "standardised":  # zeros in the weight that is stored would not be zeros in the one that is used
        masks.pop("weight")
        set_masks(model, {"weight": torch.ones(4, 3, 3, 3)})
    with torch.no_grad():
        for path, mask in masks.items():
            dense.get_parameter(path).masked_fill_(~mask, 0)
            model.get_parameter(path).masked_fill_(~mask, 1e30)
    for training in (True, False):
        expected, given = run(dense, args, training=training), run(model, args, training=training)
        assert all(torch.equal(a, b) for a, b in zip(expected, given, strict=True))
        for results in (expected, given):
            torch.stack([result.square().sum() for result in results]).sum().backward()
        for path, parameter in model.named_parameters():
            gradient = dense.get_parameter(path).grad
            assert parameter.grad is not None and gradient is not None
            assert torch.equal(parameter.grad, gradient.where(masks.get(path, torch.tensor(True)), 0))
    for (path, expected_buffer), given_buffer in zip(dense.named_buffers(), fold(model).buffers(), strict=True):
        assert torch.equal(expected_buffer, given_buffer), path


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


FURTHER = ["0.bias", "1.weight", "1.bias", "4.bias"]


def masked_blocks() -> nn.Sequential:
    model = blocks()
    convert(model, ignore=["4"])
    mask_also(model, FURTHER)
    return model


def test_a_pruned_unit_is_exactly_zero_whatever_lies_underneath() -> None:
    model = masked_blocks()
    keep = torch.tensor([True, False, True, True])
    masks = {"0.weight": keep[:, None, None, None].expand(4, 3, 3, 3), **dict.fromkeys(FURTHER[:3], keep)}
    set_masks(model, masks)
    with torch.no_grad():
        for name in masks:
            model.get_parameter(name)[1] = float("nan")
    for training in (True, False):
        features = model.train(training)[:2](*IMAGE)
        assert not features[:, 1].any() and not features[:, 1].signbit().any()
        assert features[:, [0, 2, 3]].isfinite().all() and features[:, 0].any()
    assert model[1].running_mean[1] == 0 and model[1].running_mean[0] != 0 and model[1].num_batches_tracked == 1


def test_masking_twice_and_converting_again_lose_nothing() -> None:
    model = masked_blocks()
    mask_also(model, "4.weight")
    masks = half_masks(model)
    mask_also(model, [*FURTHER, "0.weight"])
    assert list(masked_weights(model)) == ["0.weight"]
    assert convert(model, ignore=["4"]).masked == {"0.weight": "direct"}
    assert list(masked_weights(model)) == ["0.weight"]
    for name, mask in get_masks(model).items():
        assert torch.equal(mask, masks[name])
    convert(model)  # a weight that was masked as a further parameter counts as a weight now
    assert list(masked_weights(model)) == ["0.weight", "4.weight"]
    assert set(get_masks(model)) == set(masks) == {*FURTHER, "0.weight", "4.weight"}
    assert all(torch.equal(mask, masks[name]) for name, mask in get_masks(model).items())
    assert verify(model, IMAGE).ok


def test_a_plain_model_may_have_further_masks_alone() -> None:
    model = blocks()
    mask_also(model, FURTHER)
    assert not masked_weights(model) and list(masked_parameters(model)) == FURTHER
    assert verify(model, IMAGE).live == FURTHER
    half_masks(model)
    state = fold(model).state_dict()
    assert list(state) == list(blocks().state_dict()) and (state["1.weight"] == 0).any()


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer.bias


def unreachable() -> nn.ModuleDict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it, and a user may still have one
        scripted = torch.jit.script(nn.Linear(4, 4))
    normed, spare, patched, own, counted = (nn.Linear(4, 4) for _ in range(5))
    spare.spare = nn.Parameter(torch.randn(4))
    patched.forward = lambda input: input + patched.bias  # type: ignore[method-assign]
    own.register_buffer("bias_mask", torch.ones(4))
    counted.steps = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "normed": parametrizations.weight_norm(normed),
            "spare": spare,
            "patched": patched,
            "own": own,
            "traced": fx.symbolic_trace(Biased()),
            "counted": counted,
            "pruned": nn.Linear(4, 4),
            "scripted": scripted,
        }
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain.bais", "the model has no parameter 'plain.bais'; did you mean 'plain.bias'\\?"),
        ("normed.parametrizations.weight.original0", "a weight is computed from it"),
        ("spare.spare", "no forward of the model was found to read it"),
        ("patched.bias", "its module's forward was replaced on the object"),
        ("own.bias", "has an attribute bias_mask of its own"),
        ("traced.layer.bias", "read by an fx.GraphModule"),
        ("counted.steps", "stored as int64"),
        ("pruned.bias_orig", "pruned by torch.nn.utils.prune: call torch.nn.utils.prune.remove first"),
        ("scripted.bias", "scripted: call mask_also before torch.jit.script"),
    ],
)
def test_what_cannot_be_masked_is_one_error_and_nothing_is_changed(name: str, message: str) -> None:
    model = unreachable()
    convert(model)
    prune.random_unstructured(model["pruned"], "bias", amount=1)
    classes, keys = [type(module) for module in model.modules()], [*model.state_dict()]
    where = "" if "no parameter" in message else f"{name} cannot be masked: "
    with pytest.raises(SparsifyError, match=f"^mask_also: {where}{message}[^\n]*$"):
        mask_also(model, ["plain.bias", name])
    assert [type(module) for module in model.modules()] == classes and [*model.state_dict()] == keys
    mask_also(model, ["plain.bias", "normed.bias"])
    assert {"plain.bias", "normed.bias"} <= {*get_masks(model)}


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("name", ["batch_norm", "attention", "lstm", "borrowing", "separate", "batch_norm_act"])
def test_copies_compute_the_same_and_have_masks_of_their_own(
    name: str, copied: Callable[[nn.Module], nn.Module]
) -> None:
    make, args = CASES[name]
    model = make()
    convert(model)
    mask_also(model, further(make()))
    half_masks(model)
    other = copied(model)
    expected, given = run(model, args, training=False), run(other, args, training=False)
    assert all(torch.equal(a, b) for a, b in zip(expected, given, strict=True))
    assert list(masked_weights(other)) == list(masked_weights(model))
    set_masks(other, {name: torch.zeros_like(mask) for name, mask in get_masks(other).items()})
    assert any(mask.any() for mask in get_masks(model).values())


def test_a_dense_state_dict_loads_strictly_and_the_masks_stay() -> None:
    model = masked_blocks()
    set_masks(model, {"1.weight": torch.tensor([1, 0, 1, 0])})
    model.load_state_dict(blocks().state_dict(), strict=True)
    assert get_masks(model)["1.weight"].tolist() == [True, False, True, False]
    assert get_masks(model)["0.bias"].all()
    with torch.device("meta"):
        empty = masked_blocks()
    empty.load_state_dict(blocks().state_dict(), strict=True, assign=True)
    assert verify(empty, IMAGE).ok and get_masks(empty)["1.bias"].all()


# Dynamo of torch 2.10 looks at .grad of what it carries over a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "name",
    ["linear", "conv", "batch_norm", "group_norm", "layer_norm", "rms_norm", "attention", "encoder", "borrowing"]
    + ["separate", "batch_norm_act"],
)
def test_torch_compile_follows_mask_changes(name: str) -> None:
    torch._dynamo.reset()
    make, args = CASES[name]
    model = make().eval()
    convert(model)
    mask_also(model, further(make()))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=DYNAMO_FOLLOWS)
    for seed in range(2):
        half_masks(model, seed)
        torch.testing.assert_close(outputs(compiled(*args)), outputs(model(*args)))


def test_a_norm_that_reads_its_own_parameters_can_be_traced() -> None:
    model = timm_norm("BatchNormAct2d", 4)().eval()
    convert(model)
    mask_also(model, ["1.weight", "1.bias"])
    half_masks(model)
    expected = fold(model)(*IMAGE)
    assert torch.equal(model(*IMAGE), expected)
    graph = fx.symbolic_trace(model)
    assert torch.equal(graph(*IMAGE), expected) and torch.equal(model(*IMAGE), expected)
    assert torch.equal(trace(model)(*IMAGE), expected)


def test_traces_and_folded_models_do_the_same() -> None:
    model = masked_blocks().eval()
    half_masks(model)
    expected = model(*IMAGE)
    assert torch.equal(fx.symbolic_trace(model)(*IMAGE), expected)
    assert torch.equal(trace(model)(*IMAGE), expected)
    folded = fold(model)
    assert [type(module) for module in folded.modules()] == [type(module) for module in blocks().modules()]
    assert torch.equal(folded(*IMAGE), expected) and not get_masks(folded)


def test_a_folded_convolution_with_a_computed_weight_keeps_its_masked_bias() -> None:
    model = Standardised(3, 4, 3).eval()
    convert(model)
    mask_also(model, ["bias", "gain"])
    half_masks(model)
    folded = fold(model)
    assert type(folded) is nn.Conv2d and torch.equal(folded(*IMAGE), model(*IMAGE))
    assert torch.equal(folded.bias != 0, get_masks(model)["bias"])


def test_a_parameter_with_two_names_has_one_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[2].bias = model[1].bias = model[0].bias
    convert(model)
    mask_also(model, "1.bias")
    assert list(get_masks(model)) == ["0.weight", "0.bias", "2.weight"]
    half_masks(model)
    for changed in (model, copy.deepcopy(model).double()):
        assert all(torch.equal(changed[i].bias_mask, changed[0].bias_mask) for i in (1, 2))
    assert verify(model, WORDS).ok


class Leaking(nn.Module):
    """Uses its norm's bias a second time, out of sight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.hidden = [self.norm]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), x[0], getattr(self.hidden[0], "bi" + "as")[:3])


def test_verify_finds_a_dense_use_and_a_mask_without_effect() -> None:
    model = Leaking()
    mask_also(model, ["norm.weight", "norm.bias"])
    report = verify(model, WORDS)
    assert report.dense == ["norm.bias"] and "norm.bias: linear saw the dense weight" in report.leaks
    model.norm.__class__ = nn.LayerNorm
    assert verify(model, WORDS).dead == ["norm.weight", "norm.bias"]
