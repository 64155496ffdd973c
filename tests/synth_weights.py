"""Seeded weights for the full-size oracle tests, bit for bit as the oracle's author made them.

Every tensor is ``mid + half * u`` in float32 with ``u`` uniform in [-1, 1): the top 24 bits of each raw 64-bit word of
a PCG64 generator, shifted to be signed and divided by 2**23, so ``u`` is exact in float32. The generator's seed is
the first half of SHA-256("<seed>:<name>"), little-endian. Only NumPy's raw words are used, which never change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_BLOCK = 1 << 15  # numbers that stay in the processor's cache
_EMBEDDINGS = ("scale_token", "cls_token", "pos_embed", "register_tokens")
_UPSAMPLERS = ("input_process.0.0.1.weight", "input_process.1.0.1.weight")  # stored as (in, out, k, k)


def signed_uniform(seed: int, name: str, count: int) -> Array:
    """``count`` values in [-1, 1) on a grid of 2**-23, shape (count,), float32."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    words = np.random.PCG64(int.from_bytes(digest[:16], "little"))
    values = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        part = values[start : start + _BLOCK]
        part[:] = (words.random_raw(part.size) >> np.uint64(40)).astype(np.int32) - 2**23
        part *= np.float32(2.0**-23)
    return values


def centre_and_range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Centre and half-width of a tensor's uniform distribution, before gains."""
    owner, _, kind = name.rpartition(".")
    is_norm = owner.rpartition(".")[2].rstrip("0123456789").endswith(("norm", "norm_layer"))
    if kind == "gamma":
        return 0.7, 0.3
    if kind in _EMBEDDINGS:
        return 0.0, 0.5
    if is_norm:
        return (1.0, 0.4) if kind == "weight" else (0.0, 0.2)
    if kind == "bias":
        return 0.0, 0.1
    if kind != "weight":
        raise ValueError(f"{name}: no rule for this kind of tensor")
    fan_in = shape[0] if name.endswith(_UPSAMPLERS) else math.prod(shape[1:])
    return 0.0, (1.2 if owner.endswith("qkv") else 1.0) * math.sqrt(3.0 / fan_in)


def synth_tensor(manifest: Mapping[str, Any], name: str) -> Array:
    """One tensor of ``manifest`` ({"seed", "tensors", "gains", "offsets"}), float32, in its own shape."""
    shape = tuple(manifest["tensors"][name])
    if name.endswith("view_pos_table"):
        return np.tile(np.float32([0.0, 1.0]), shape[1] // 2 + 1)[None, : shape[1]].copy()
    centre, half = centre_and_range(name, shape)
    gain = np.asarray(manifest.get("gains", {}).get(name, 1.0), np.float64)
    per_row = (half * gain).astype(np.float32).reshape((-1,) + (1,) * (len(shape) - 1))
    values = signed_uniform(manifest["seed"], name, math.prod(shape)).reshape(shape)
    values *= per_row
    values += np.float32(centre)
    offset = manifest.get("offsets", {}).get(name)
    if offset is not None:
        values += np.float32(offset).reshape(shape)
    return values


def synth_weights(manifest: Mapping[str, Any]) -> dict[str, Array]:
    """All tensors of ``manifest`` by name."""
    return {name: synth_tensor(manifest, name) for name in manifest["tensors"]}
