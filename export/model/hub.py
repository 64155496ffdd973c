"""From what a user names (a preset, a folder, a file, a Hub id) to a configuration and weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mapengine.runtime.errors import InputError, ModelNotFoundError

from .checkpoint import PICKLE_SUFFIXES, read_checkpoint
from .config import ModelConfig
from .config_json import read_config
from .presets import PREFIX, load_preset, preset_names

HUB_FILES = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
"""All that is downloaded of a Hub repository."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".json", ".zip", ".onnx")


@dataclass(frozen=True)
class ResolvedModel:
    """A network's configuration and its float32 weights by canonical name."""

    config: ModelConfig
    tensors: dict[str, torch.Tensor]
    model_id: str
    """``preset:NAME``, the Hub id, or the name (not the path) of a local folder or file."""
    revision: str | None
    """The commit of a Hub repository, otherwise None."""


def resolve_model(model: str | Path, revision: str | None = None) -> ResolvedModel:
    """Find and read a model.

    ``model`` is ``preset:NAME``; an existing folder in upstream's format (``config.json`` and ``model.safetensors``);
    a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file with ``config.json`` beside it; or else a Hugging Face Hub id
    ``organisation/name``, the only form that may use the network. ``revision`` (branch, tag or commit) goes with a Hub
    id. A cached download is used when the Hub cannot be reached.

    Raises ModelNotFoundError, ConfigError, CheckpointError, or InputError for a revision of something local.
    """
    name = str(model)
    if not name.strip():
        raise ModelNotFoundError("no model named; pass a Hub id, a folder, a weight file or a preset")
    if name.startswith(PREFIX):
        _no_revision(name, revision)
        config, tensors = load_preset(name[len(PREFIX) :])
        return ResolvedModel(config, tensors, name, None)
    path = Path(name).expanduser()
    if _exists(path):
        _no_revision(name, revision)
        return _read_local(path)
    if isinstance(model, Path) or _looks_like_path(name):
        raise ModelNotFoundError(f"{name}: no such file or folder; check the path, or name a Hub id or a preset")
    if not _HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        raise ModelNotFoundError(
            f"{name!r} is neither a folder, a weight file, a Hub id (organisation/name) nor a preset "
            f"({', '.join(PREFIX + preset for preset in preset_names())})"
        )
    folder = _download(name, revision)
    local = _read_local(folder)
    return ResolvedModel(local.config, local.tensors, name, folder.name)


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"revision={revision!r} does not apply to {name}; only a Hub id has revisions")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.endswith(("/", *_FILE_SUFFIXES))
        or "\\" in name
        or name.count("/") > 1
        or re.match(r"[A-Za-z]:", name) is not None
    )


def _read_local(path: Path) -> ResolvedModel:
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        what = "no config.json in this folder" if path.is_dir() else "no config.json beside this file"
        raise ModelNotFoundError(f"{path}: {what}; it is needed to know the network that the weights belong to")
    config = read_config(folder / "config.json")
    return ResolvedModel(config, read_checkpoint(path, config), path.resolve().name, None)


def _download(repo: str, revision: str | None) -> Path:
    """Return the folder of the snapshot, named after its commit; from the cache if the Hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    if revision and _COMMIT.fullmatch(revision):
        try:  # a commit never changes: what is cached needs no question to the Hub
            cached = Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
            if (cached / "config.json").is_file() and any(cached.glob("model*.safetensors")):
                return cached
        except LocalEntryNotFoundError:
            pass
    try:
        if revision and _COMMIT.fullmatch(revision):
            _probe(repo, revision)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, etag_timeout=5))
    except GatedRepoError:
        reason = "access to it must be asked for on its page; then log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = "the Hub has no such revision of it"
    except RepositoryNotFoundError:
        reason = "the Hub has no such model, or it is private and needs `hf auth login`"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        reason = (
            "it is neither in the local cache nor reachable; download it on a machine with network "
            "(`hf download`) and pass the folder, or point HF_HOME at a cache that has it"
        )
    except Exception as error:  # the HTTP library and its errors differ between versions of huggingface_hub
        reason = f"the download failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    raise ModelNotFoundError(f"{repo}{at}: {reason}")


def _probe(repo: str, revision: str) -> None:
    """Raise an error at once if the Hub cannot be reached: for a commit, snapshot_download starts with a request it
    retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().repo_info(repo, revision=revision, timeout=5)
    except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError):
        raise
    except Exception as error:  # the HTTP library and its errors differ between versions of huggingface_hub
        raise LocalEntryNotFoundError(str(error)) from error
