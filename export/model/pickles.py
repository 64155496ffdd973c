"""Checkpoints that are pickles, read without running what they hold."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapengine.runtime.errors import CheckpointError
from mapengine.runtime.system.reading import open_file

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_STATE_DICTS = ("model", "state_dict", "model_state_dict")
"""Keys that training scripts keep a state dict under."""


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the state dict of a ``.pth``, ``.pt``, ``.bin`` or ``.ckpt`` file, tensors by name.

    Raises:
        CheckpointError: it would run code, is damaged, or holds no state dict; says what to do.
    """
    try:
        open_file(path).close()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        with warnings.catch_warnings():  # about unusual pickle protocols, before the same file is refused or read
            warnings.simplefilter("ignore")
            data = _torch_load(path)
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported (global|class)|Trying to|Can only", str(error)):  # torch names a call it withholds
            raise CheckpointError(
                f"{path}: refused, because it would run code while loading; where it can be trusted, load it with "
                "PyTorch and save its state dict as .safetensors"
            ) from None
        raise CheckpointError(f"{path}: damaged, truncated or not a PyTorch checkpoint") from None
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, ImportError):
        raise CheckpointError(f"{path}: damaged, truncated or not a PyTorch checkpoint") from None
    if isinstance(data, Mapping):
        data = next((data[key] for key in _STATE_DICTS if isinstance(data.get(key), Mapping)), data)
    if not isinstance(data, Mapping) or not any(isinstance(value, torch.Tensor) for value in data.values()):
        names = ", ".join(str(key) for key in list(data)[:5]) if isinstance(data, Mapping) else ""
        raise CheckpointError(
            f"{path}: no state dict in it{f' (its keys: {names})' if names else ''}; expected tensors by name, bare or "
            f"under {', '.join(_STATE_DICTS)}: save that part of it"
        )
    return dict(data)


_PLAIN_DATA = [argparse.Namespace, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8"))]
"""What training scripts store beside the weights (their arguments, the best loss). Rebuilding one runs no code of the
file: a namespace only holds values, and a NumPy scalar is a type and bytes."""


_INERT = re.compile(
    r"(omegaconf|hydra|lightning|lightning_fabric|pytorch_lightning|torchmetrics|pathlib|typing|collections)\..+"
    r"|builtins\.(dict|list|tuple|set|frozenset|int|str|float|bool|complex|bytes|object|slice|range)"
)
"""Classes whose objects stand beside the weights in checkpoints as they exist, and are of no use here."""


class _Inert:
    """Takes the place of a class that a checkpoint names: it keeps nothing and does nothing, however it is made."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)

    def append(self, _: Any) -> None:
        """Drop what a list would keep."""

    def extend(self, _: Any) -> None:
        """Drop what a list would keep."""


def _torch_load(path: Path) -> Any:
    # NumPy 2 moved the function that rebuilds a scalar; files name either place.
    scalar = np.float64(0).__reduce__()[0]
    known: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    inert: dict[str, Any] = {}
    while True:
        with torch.serialization.safe_globals([*_PLAIN_DATA, *known, *inert.values()]):
            try:
                return _load_weights(path)
            except pickle.UnpicklingError as error:
                # PyTorch refuses at the first name that it does not know, and reads no further.
                named = re.search(r"GLOBAL ([\w.]+) ", str(error))
                name = named[1] if named else ""
                name = name if "." in name else f"builtins.{name}"  # which PyTorch leaves out
                if name in inert or not _INERT.fullmatch(name):
                    raise
                inert[name] = (type(name.rpartition(".")[2], (_Inert,), {}), name)


def _load_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)  # the pre-1.6 format cannot be mapped
