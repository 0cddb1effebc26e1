"""Specs of transformers, on small configurations in folders: nothing is fetched."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import sparsify
from sparsify.errors import RunWarning, SparsifyError
from sparsify.models import build_model, check_model_name
from sparsify.transformers_models import check_configuration, parts

BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}
CLIP = {
    "model_type": "clip",
    "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40},
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32},
}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages that it imports
        return pytest.importorskip("transformers", reason="transformers is not installed")


def folder(where: Path, name: str, table: dict[str, Any]) -> Path:
    place = where / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(table))
    return place


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("gpt2", ("gpt2", None)),
        ("google/vit-base", ("google/vit-base", None)),
        ("gpt2:AutoModel", ("gpt2", "AutoModel")),
        ("./a:b/c", ("./a:b/c", None)),
        ("./a:b/c:AutoModel", ("./a:b/c", "AutoModel")),
    ],
)
def test_class_is_what_follows_the_last_colon(rest: str, expected: tuple[str, str | None]) -> None:
    assert parts(rest) == expected


def test_without_the_package_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsify.transformers_models.find_spec", lambda name: None)
    with pytest.raises(SparsifyError, match=r"^'transformers:gpt2' needs the package transformers: pip install"):
        check_model_name("transformers:gpt2")


def test_configuration_that_would_fetch_code_or_weights_is_refused() -> None:
    for table in ({"attn_implementation": "owner/kernel"}, {"a": {"use_pretrained_backbone": True}}):
        with pytest.raises(SparsifyError, match="would be fetched"):
            check_configuration("here", table)
    check_configuration("here", {"attn_implementation": "sdpa", "use_pretrained_backbone": False})


def test_names_are_checked_without_importing_the_package(transformers: Any) -> None:
    code = dedent("""\
        import sys
        from sparsify.models import check_model_name
        check_model_name("transformers:owner/name:AutoModelForMaskedLM")
        assert not {"torch", "transformers"} & set(sys.modules)
        """)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_name_is_one_line_with_the_likely_intention(transformers: Any, tmp_path: Path) -> None:
    folder(tmp_path, "tiny-bert", BERT)
    (tmp_path / "empty").mkdir()
    mistakes = {
        f"{tmp_path}/tiny-brt": f"there is no folder '{tmp_path}/tiny-brt'; did you mean 'transformers:{tmp_path}/tiny",
        f"{tmp_path}/empty": "has no config.json",
        "a b": "'a b' is neither a folder nor a name of the hub (OWNER/NAME)",
        "gpt2:AutoModelForCausalML": "did you mean 'AutoModelForCausalLM'?",
    }
    for rest, message in mistakes.items():
        with pytest.raises(SparsifyError) as caught:
            check_model_name(f"transformers:{rest}", where="--model")
        assert str(caught.value).startswith("--model: ") and message in str(caught.value)


def test_folder_gives_the_class_that_its_configuration_names(transformers: Any, tmp_path: Path) -> None:
    place = folder(tmp_path, "tiny-bert", BERT)
    model = build_model(f"transformers:{place}", num_classes=7)
    assert type(model) is transformers.BertForSequenceClassification and model.training
    ids = torch.randint(40, (2, 6))
    assert model(ids).logits.shape == (2, 7)
    assert type(build_model(f"transformers:{place}:AutoModelForMaskedLM")) is transformers.BertForMaskedLM
    wider = build_model(f"transformers:{place}", intermediate_size=32)
    assert wider.bert.encoder.layer[0].intermediate.dense.out_features == 32


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (BERT, {"hidden_sizes": 8}, "unknown argument of BertConfig 'hidden_sizes'; did you mean 'hidden_size'?"),
        ({**BERT, "model_type": "berd"}, {}, "'berd', is none of transformers' own; did you mean 'bert'?"),
        ({**BERT, "hidden_size": 15}, {}, "cannot be built: "),
        ({**BERT, "quantization_config": {"load_in_8bit": True}}, {}, "quantization_config"),
        (BERT, {"config": 3}, "config: 3 is given, a dict is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(
    transformers: Any, tmp_path: Path, table: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    place = folder(tmp_path, "tiny", table)
    with pytest.raises(SparsifyError) as caught:
        build_model(f"transformers:{place}", **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_code_beside_a_configuration_is_never_run(transformers: Any, tmp_path: Path) -> None:
    place = folder(tmp_path, "own", {**BERT, "auto_map": {"AutoModel": "modeling.Own", "AutoConfig": "modeling.Own"}})
    (place / "modeling.py").write_text("raise SystemExit('run')")
    assert type(build_model(f"transformers:{place}:AutoModel")) is transformers.BertModel


def test_weights_of_a_folder_are_taken_if_asked_for_and_said_if_there_are_none(
    transformers: Any, tmp_path: Path
) -> None:
    place = folder(tmp_path, "tiny", BERT)
    with pytest.warns(RunWarning, match="the folder holds no weights; the model keeps its fresh initialisation"):
        build_model(f"transformers:{place}", pretrained=True)
    source = build_model(f"transformers:{place}")
    source.save_pretrained(place)
    model = build_model(f"transformers:{place}", pretrained=True)
    assert model.training
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with pytest.warns(RunWarning, match="classifier.bias, classifier.weight are fresh"):
        build_model(f"transformers:{place}", pretrained=True, num_classes=5)


@pytest.mark.parametrize("table", [BERT, CLIP], ids=["bert", "clip"])
def test_file_of_such_a_model_loads_without_its_folder(
    transformers: Any, tmp_path: Path, table: dict[str, Any]
) -> None:
    place = folder(tmp_path, "tiny", table)
    spec = f"transformers:{place}"
    model = build_model(spec).eval()
    sparsify.convert(model)
    sparsify.Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, total_steps=1).start()
    sparsify.save(model, tmp_path / "a.safetensors", spec=spec)
    (place / "config.json").unlink()
    again = sparsify.load(tmp_path / "a.safetensors")
    assert type(again).__mro__[-1] is object and again.config.model_type == table["model_type"]
    masks, theirs = sparsify.get_masks(model), sparsify.get_masks(again)
    assert masks.keys() == theirs.keys() and all(torch.equal(masks[name], theirs[name]) for name in masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "does not hold its model's configuration"),
        ({"config": {**BERT, "attn_implementation": "owner/kernel"}}, "would be fetched"),
        ({"config": {**BERT, "num_hidden_layers": 10**7}}, "beyond 1,000,000"),
    ],
)
def test_file_chooses_neither_code_nor_a_place_to_read(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    spec = f"transformers:{folder(tmp_path, 'tiny', BERT)}"
    model = build_model(spec)
    monkeypatch.setattr("sparsify.export.save.portable", lambda *_: arguments)
    sparsify.save(model, tmp_path / "a.safetensors", spec=spec)
    with pytest.raises(SparsifyError, match=message):
        sparsify.load(tmp_path / "a.safetensors")


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}


def pruned(place: Path, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = build_model(f"transformers:{place}").eval()
    sparsify.convert(model)
    pruning = {"sparsity": 0.5, "schedule": "one_shot", "scope": "layer"} | settings
    sparsify.Pruner(model, pruning, total_steps=1, example_input=TEXT).start()
    return model


TEXT = {"input_ids": torch.arange(3, 12)[None], "use_cache": False}


def test_folded_model_is_saved_and_read_by_the_library_with_its_zeros(transformers: Any, tmp_path: Path) -> None:
    model = pruned(folder(tmp_path, "tiny", LLAMA), {})
    plain: Any = sparsify.fold(model)
    plain.save_pretrained(tmp_path / "out")
    again, info = type(plain).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and torch.equal(again.eval()(**TEXT).logits, model(**TEXT).logits)
    for name, mask in sparsify.get_masks(model).items():
        assert not again.get_parameter(name)[~mask].any(), name


def test_configuration_of_a_shrunk_model_follows_and_the_library_reads_it(transformers: Any, tmp_path: Path) -> None:
    place = folder(tmp_path, "tiny", LLAMA)
    report = sparsify.shrink(pruned(place, {"granularity": "unit"}), TEXT)
    small: Any = report.model
    config = small.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 12)
    assert config.hidden_size == 16 and config.head_dim == 4
    small.save_pretrained(tmp_path / "out")
    again, info = type(small).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and torch.equal(again.eval()(**TEXT).logits, small.eval()(**TEXT).logits)
    sparsify.save(small, tmp_path / "a.safetensors", spec=f"transformers:{place}")
    assert sparsify.load(tmp_path / "a.safetensors").config.intermediate_size == 12


def test_layers_that_disagree_leave_the_configuration_to_the_files_cuts(transformers: Any, tmp_path: Path) -> None:
    place = folder(tmp_path, "tiny", LLAMA)
    ignored = ["model.layers.0.*"]
    torch.manual_seed(0)
    model = build_model(f"transformers:{place}").eval()
    sparsify.convert(model, ignore=ignored)
    pruning = {"sparsity": 0.5, "schedule": "one_shot", "scope": "layer", "granularity": "unit"}
    sparsify.Pruner(model, pruning, total_steps=1, example_input=TEXT).start()
    report = sparsify.shrink(model, TEXT)
    small: Any = report.model
    assert small.config.intermediate_size == 24 and "no configuration builds it" in report.configuration
    sparsify.save(small, tmp_path / "a.safetensors", spec=f"transformers:{place}")
    again: Any = sparsify.load(tmp_path / "a.safetensors").eval()
    assert [layer.mlp.up_proj.out_features for layer in again.model.layers] == [24, 12]
    assert torch.equal(again(**TEXT).logits, small.eval()(**TEXT).logits)
