"""LoRA of peft over masked models: dense adapters, and merging under the masks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RunWarning, SparsifyError

peft: Any = pytest.importorskip("peft", reason="needs peft (the extra 'hf')")

# What peft asks of models of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def adapted(base: nn.Module, *targets: str, **given: Any) -> Any:
    """Return the model with adapters that are not zero, as they would be after training."""
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), init_lora_weights=False, **given)
    return peft.get_peft_model(base, config)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 6))


def pruned(model: nn.Module, sparsity: float = 0.5) -> nn.Module:
    sparsify.convert(model)
    pruning = {"sparsity": sparsity, "schedule": "one_shot", "scope": "filter"}
    sparsify.Pruner(model, pruning, total_steps=1).start()
    return model


def names(model: nn.Module) -> set[str]:
    return {name.replace("base_model.model.", "").replace(".base_layer", "") for name in sparsify.get_masks(model)}


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("first", ["convert", "adapt"])
def test_adapters_stay_dense_whichever_comes_first(first: str) -> None:
    model: Any = network()
    if first == "convert":
        model = adapted(pruned(model), "0", "3")
    else:
        model = adapted(model, "0", "3")
        report = sparsify.convert(model)
        assert sum(reason == "an adapter (LoRA), which stays dense" for reason in report.skipped.values()) == 4
    assert names(model) == {"0.weight", "3.weight"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 4 and all("lora_" in name for name in changed)


def test_the_adapters_add_to_the_masked_layer() -> None:
    model = adapted(pruned(network()), "3")
    base = sparsify.fold(model.get_base_model()[:3])
    layer = model.get_base_model()[3]
    weight = layer.base_layer.weight * layer.base_layer.weight_mask
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0
    expected = nn.functional.linear(base(X), weight + delta, layer.base_layer.bias)
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_happens_under_the_masks(safe: bool) -> None:
    model = adapted(pruned(network(), 0.7), "0", "3")
    masks = {name: mask.clone() for name, mask in sparsify.get_masks(model).items()}
    layer = model.get_base_model()[3]
    values = layer.base_layer.weight.detach().clone()
    delta = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2.0).detach()
    merged = model.merge_and_unload(safe_merge=safe)
    after = sparsify.get_masks(merged)
    assert after.keys() == {"0.weight", "3.weight"}
    assert all(torch.equal(a, b) for a, b in zip(after.values(), masks.values(), strict=True))
    plain = sparsify.fold(merged)
    torch.testing.assert_close(plain[3].weight, torch.where(after["3.weight"], values + delta, 0))
    assert torch.equal(plain(X), merged(X))
    assert all(bool((plain.get_parameter(name)[~mask] == 0).all()) for name, mask in after.items())


def test_unmerging_gives_the_weights_back() -> None:
    model = adapted(pruned(network()), "3")
    before = model(X)
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), before)


def gpt2() -> Any:
    transformers: Any = pytest.importorskip("transformers", reason="needs transformers (the extra 'hf')")
    config = transformers.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def test_layers_of_transformers_merge_under_their_masks() -> None:
    model = adapted(pruned(gpt2()), "c_attn", fan_in_fan_out=True)
    tokens = torch.arange(6)[None]
    assert torch.isfinite(model(tokens).logits).all() and len(names(model)) == 4
    merged = model.merge_and_unload()
    plain = sparsify.fold(merged)
    mask: Tensor = sparsify.get_masks(merged)["transformer.h.0.attn.c_attn.weight"]
    weight = plain.transformer.h[0].attn.c_attn.weight
    assert torch.equal(weight == 0, ~mask) and torch.equal(plain.eval()(tokens).logits, merged.eval()(tokens).logits)


def test_a_trainer_prunes_under_adapters_and_says_what_its_checkpoints_lack(tmp_path: Path) -> None:
    import transformers  # type: ignore[import-not-found, unused-ignore]

    from sparsify.integrations import HuggingFaceCallback

    data = [{"input_ids": row, "labels": row} for row in torch.randint(1, 16, (16, 6))]
    settings: dict[str, Any] = {"max_steps": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    args = transformers.TrainingArguments(str(tmp_path), **settings, save_steps=2, per_device_train_batch_size=2)
    pruning = {"sparsity": 0.5, "scope": "filter", "schedule": "linear", "every": "1it", "end": "3it"}

    def make() -> Any:
        model = adapted(gpt2(), "c_attn", fan_in_fan_out=True)
        return transformers.Trainer(model, args, train_dataset=data, callbacks=[HuggingFaceCallback(pruning)])

    trainer = make()
    with pytest.warns(RunWarning, match="hold the adapters alone"):
        trainer.train()
    assert all(int(mask.sum()) * 2 == mask.numel() for mask in sparsify.get_masks(trainer.model).values())
    with pytest.raises(SparsifyError, match="no pruner's state came with the checkpoint"), pytest.warns(RunWarning):
        make().train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
