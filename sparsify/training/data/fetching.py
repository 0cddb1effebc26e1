"""Whether what a run would download can be had: its place is asked, and nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from ...errors import one_line
from ...models import TIMM_SOURCES, fetched

_SECONDS = 10
_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    "open_clip_model.safetensors",
)


def ask(url: str) -> None:
    """Raise OSError if nothing can be downloaded from `url`, which is opened as a download does, but not read."""
    with urlopen(Request(url, headers={"User-Agent": "torch.hub"}), timeout=_SECONDS):
        pass


def weights_are_here(spec: str) -> bool:
    """Return whether the model `spec` is built with its published weights without a download.

    Also if it has none, which building it says. Raises RunError, as building it would, if their place does not answer.
    """
    prefix, _, name = spec.partition(":")
    if prefix == "timm":
        return fetched(spec, lambda: _timm(name))
    if prefix == "torchvision":
        from torchvision.models import get_model_weights

        return fetched(spec, lambda: _at(get_model_weights(name).DEFAULT.url))
    return prefix != "transformers" or os.path.isdir(name) or fetched(spec, lambda: _on_hub(name))


def _timm(name: str) -> bool:
    from timm.models import get_pretrained_cfg

    if name.startswith(TIMM_SOURCES):
        return name.startswith("local-dir:") or _on_hub(name.partition(":")[2])
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:  # of no such tag
        return True
    if found is not None and found.hf_hub_id:
        return _on_hub(found.hf_hub_id, found.hf_hub_filename)
    return found is None or not isinstance(found.url, str) or not found.url or _at(found.url)


def _at(url: str) -> bool:
    """Return whether torch.hub has the file of `url`; raises OSError if it has not and its place does not answer."""
    here = (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()
    if not here:
        ask(url)
    return here


def _on_hub(repository: str, file: str | None = None) -> bool:
    """Return whether the hub's cache has weights of `repository`; raises OSError or HfHubHTTPError if it is no use."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    name, _, revision = repository.partition("@")
    files = (file, *_FILES) if file else _FILES  # timm takes the safetensors file beside the one that it names
    here = any(isinstance(try_to_load_from_cache(name, one, revision=revision or None), str) for one in files)
    if not here:
        try:
            get_hf_file_metadata(hf_hub_url(name, file or "config.json", revision=revision or None), timeout=_SECONDS)
        except EntryNotFoundError:
            return False  # the repository answers; the run finds out which files it has
        except HfHubHTTPError:
            raise
        except Exception as error:  # of the package under the hub's client, which is another in each of its versions
            raise ConnectionError(one_line(error)) from error
    return here
