"""Locating a model's file: by path, in a folder, or in a repository of the Hugging Face hub."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from shlex import quote

from ...errors import RunError, SparsifyError, one_line
from ...hub_log import quiet_hub

# The usual name of a model's file in its folder.
MODEL_FILE = "model.safetensors"
HUB = "hf:"
_REPOSITORY = re.compile(r"([^/@\s]+/[^/@\s]+)(?:@(\S+))?")
# Spellings of other tools, which people paste.
_ELSEWHERE = re.compile(r"(?:hf-hub:|hf_hub:|hf:/+|https?://(?:www\.)?huggingface\.co/)([^/\s]+/[^/\s]+).*")


def is_on_hub(source: str) -> bool:
    """Return whether `source` is written as a repository of the hub."""
    return source.startswith(HUB) or _ELSEWHERE.fullmatch(source) is not None


def model_file(source: str | os.PathLike[str]) -> Path:
    """Return the path of the model's file at `source`; a file's path is returned as it is.

    For a folder (a run's, or one in the layout of the hub) it is the `model.safetensors` in it; for "hf:OWNER/NAME",
    with or without "@REVISION", that of a repository on the Hugging Face hub, downloaded into the hub's cache if it is
    not there. Raises SparsifyError, one line, for a folder without a model, and for any failure of the download.
    """
    if isinstance(source, str):
        meant = _ELSEWHERE.fullmatch(source)
        if is_on_hub(source):
            return _fetched(source, f"{HUB}{meant[1]}" if meant else source)
    path = Path(source)
    if not os.path.isdir(path):
        return path
    if os.path.isfile(path / MODEL_FILE):
        return path / MODEL_FILE
    if os.path.isfile(path / "recipe.yaml"):
        raise SparsifyError(f"{path}: the run is not finished; go on with: sparsify train --resume {quote(str(path))}")
    raise SparsifyError(f"{path}: a folder without a run or a model in it: no {MODEL_FILE}")


def _fetched(source: str, meant: str) -> Path:
    """Return the path of a repository's model file in the hub's cache, downloaded if it is not there."""
    found = _REPOSITORY.fullmatch(meant.removeprefix(HUB))
    if found is None or meant != source:
        hint = f"; did you mean '{meant}'?" if found else ""
        raise SparsifyError(f"{source}: a model on the hub is written hf:OWNER/NAME or hf:OWNER/NAME@REVISION{hint}")
    from huggingface_hub import hf_hub_download

    try:
        with quiet_hub():
            return Path(hf_hub_download(found[1], MODEL_FILE, revision=found[2], library_name="sparsify"))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{source}: no space left on the disk for the hub's cache") from error
        # The hub's HTTP library, and so its exceptions, differ from version to version.
        raise SparsifyError(f"{source}: {_reason(error, found[2])}") from error


def _reason(error: Exception, revision: str | None) -> str:
    """Return in a few words why a download from the hub failed."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "access is restricted: ask for it on the repository's page on the hub, then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository on the hub, or a private one (log in with: hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision '{revision or 'main'}'"
    if isinstance(error, errors.HFValidationError):
        return f"no name that a repository can have: {error}"
    cause = error.__cause__ or error
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return f"no {MODEL_FILE} of it in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"the repository has no file {MODEL_FILE}"
    return f"cannot be fetched from the hub: {one_line(cause, 160)}"
