"""A small GPT-2 of transformers on characters, half of its weights removed by magnitude and by wanda.

    OMP_NUM_THREADS=1 python -m benchmarks.language_model [--seeds 0 1 2] [--steps 1800]

The text is the docstrings of Python's standard library, which every machine has. Each seed trains a model, then
removes half of every masked matrix at once, without training further, as Sun et al. 2024 do (arXiv 2306.11695): by
magnitude within each layer and within each output, and by wanda within each output, whose inputs come from training
text. The last model is exported to a torch.export program and to ONNX, which are compared with it. Needs the extra
`hf`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sparsify

from .record import environment, record

CONTEXT = 64
SIZE = 1_000_000  # characters
METHODS: dict[str, dict[str, Any]] = {
    "magnitude, within layers": {"criterion": "magnitude", "scope": "layer"},
    "magnitude, within outputs": {"criterion": "magnitude", "scope": "filter"},
    "wanda, within outputs": {"criterion": "wanda", "scope": "filter"},
}


def docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings of the modules in a folder, by name."""
    for file in sorted(folder.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def characters(size: int = SIZE) -> Tensor:
    """Return the text as integers below 96: printable ASCII and the newline."""
    text = "\n\n".join(docstrings(Path(sysconfig.get_path("stdlib"))))
    codes = np.frombuffer(text.encode("ascii", "ignore")[:size], dtype=np.uint8).astype(np.int64)
    return torch.from_numpy(np.where(codes == 10, 95, np.clip(codes - 32, 0, 94)))


class Logits(nn.Module):
    """A language model of transformers that takes tokens alone [batch, length] and returns logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def build(seed: int, width: int = 160, layers: int = 3) -> Logits:
    """Return a fresh model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "vocab_size": 96, "n_positions": CONTEXT}
    none = {
        "initializer_range": 0.08,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return Logits(GPT2LMHeadModel(GPT2Config(**sizes, **none, attn_implementation="eager")))


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of the next character over windows [batch, length + 1]."""
    logits = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train(model: nn.Module, text: Tensor, steps: int, seed: int, batch: int = 12) -> None:
    """Train with AdamW, with a learning rate that rises for a tenth of the steps and falls to zero."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT, (batch,), generator=generator)
        loss = loss_of(model, text[starts[:, None] + torch.arange(CONTEXT + 1)])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def windows(text: Tensor, count: int) -> list[Tensor]:
    """Return `count` batches of 32 windows, spread evenly over the text."""
    starts = torch.linspace(0, len(text) - CONTEXT - 1, 32 * count).long()
    return list(text[starts[:, None] + torch.arange(CONTEXT + 1)].chunk(count))


def perplexity(model: nn.Module, text: Tensor, count: int = 12) -> float:
    """Return the perplexity per character."""
    model.eval()
    with torch.no_grad():
        return math.exp(mean(float(loss_of(model, batch)) for batch in windows(text, count)))


def measure(seed: int, text: Tensor, steps: int) -> tuple[dict[str, float], nn.Module]:
    """Return the perplexities of one seed, dense and by method, and the last model, which carries masks."""
    held_out, training = text[: len(text) // 20], text[len(text) // 20 :]
    dense = build(seed)
    train(dense, training, steps, seed)
    found = {"dense": perplexity(dense, held_out)}
    for name, method in METHODS.items():
        model = copy.deepcopy(dense)
        sparsify.convert(model)
        pruner = sparsify.Pruner(model, {"sparsity": 0.5, "schedule": "one_shot", **method}, total_steps=1)
        pruner.start(windows(training, 4), loss_of)
        found[name] = perplexity(model, held_out)
    return found, model


def export(model: nn.Module, folder: Path) -> list[str]:
    """Write the model as a program and as ONNX; return a line for each with its size and the error of its outputs."""
    tokens = torch.arange(2 * CONTEXT).reshape(2, CONTEXT) % 96
    with torch.no_grad():
        wanted = model.eval()(tokens)
    lines = []
    for format, name in (("sparse", "model.safetensors"), ("pt2", "model.pt2"), ("onnx", "model.onnx")):
        options = {} if format == "sparse" else {"example_input": tokens, "batch_size": 2}
        size = sparsify.save(model, folder / name, format=format, **options)  # type: ignore[arg-type]
        off = "" if format == "sparse" else f", outputs differ by {_off(folder / name, tokens, wanted):.1e}"
        lines.append(f"`{name}` {size / 1e6:.2f} MB{off}")
    return lines


def _off(path: Path, tokens: Tensor, wanted: Tensor) -> float:
    """Return max |difference| / max |wanted| of an exported file's outputs."""
    if path.suffix == ".pt2":
        got = torch.export.load(path).module()(tokens)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: tokens.numpy()})[0])
    return float((got - wanted).abs().max() / wanted.abs().max())


def table(rows: dict[int, dict[str, float]], parameters: str, steps: int, exports: list[str]) -> str:
    """Return the section's text."""
    names = ["dense", *METHODS]
    lines = [f"| | {' | '.join(f'seed {seed}' for seed in rows)} | mean |", f"|---{'|---' * (len(rows) + 1)}|"]
    for name in names:
        values = [row[name] for row in rows.values()]
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in [*values, mean(values)])} |")
    order = [row["dense"] < row["wanda, within outputs"] < row["magnitude, within layers"] for row in rows.values()]
    return "\n".join(
        [
            "Perplexity per character of a GPT-2 on docstrings of Python's standard library, held out "
            f"({parameters}, {steps} steps), half of every masked matrix removed at once, no training afterwards. "
            f"Dense < wanda < magnitude within layers holds for {sum(order)} of {len(order)} seeds. "
            + environment("torch", "transformers", threads=torch.get_num_threads()),
            "",
            *lines,
            "",
            f"The last seed's wanda model exported: {'; '.join(exports)}.",
        ]
    )


def main() -> None:
    """Train, prune, compare, export, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1800)
    given = parser.parse_args()
    text = characters()
    rows = {}
    for seed in given.seeds:
        rows[seed], model = measure(seed, text, given.steps)
        print(seed, {name: round(value, 3) for name, value in rows[seed].items()}, flush=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    masked = sum(mask.numel() for mask in sparsify.get_masks(model).values())
    parameters = f"{count:,} parameters, {masked:,} of them masked"
    with tempfile.TemporaryDirectory() as folder:
        exports = export(model, Path(folder))
    record("language_model", table(rows, parameters, given.steps, exports))


if __name__ == "__main__":
    main()
