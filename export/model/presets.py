"""Networks that come with the project.

``nano`` is a small trained network, stored in upstream's format (:data:`TRAINED`). The others have seeded random
weights, for tests and for work on latency and memory: nothing is learned there. Their weights are variance-preserving
noise plus one simple structure that makes the outputs look like predictions. Five channels of the dense head are
"lanes": they pass from patch resolution to the output with little noise from the others. Two lanes carry a horizontal
and a vertical ramp that sits in two channels of the positional embedding, and tilt the rays, which gives a camera that
looks along +z with a field of view of about 60 degrees. The other three are smoothed random projections of the second
tap, which drive depth, confidence and mask, and so depend on every view and on all geometry that is given. All other
weights add detail of a few per cent.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mapengine.runtime.errors import ModelNotFoundError, OutputError
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.writing.folders import atomic_folder
from mapengine.runtime.writing.recognition import marker

from .checkpoint import expected_tensors, read_checkpoint
from .config import ModelConfig
from .config_json import ADAPTOR_OPTIONS, parse_config

PREFIX = "preset:"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"

TRAINED = {"nano": Path(__file__).parents[1] / "weights" / "nano"}
"""Folders of the presets whose weights were learned (:mod:`mapengine.export.training`); each has a model card,
``README.md``."""

_NATIVE_SIZES = {PREFIX + "nano": [(140, 112)]}

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Outputs:
    """Strengths and offsets that bring the outputs of one preset to plausible values; found by measurement.

    The six dense channels are ray x, y, z, log depth, log (confidence - 1) and mask logit.
    """

    lanes: tuple[float, float, float, float, float]
    """Gain of the five lanes: ray x, ray y, log depth, log (confidence - 1), mask logit."""
    offsets: tuple[float, ...] = (0.0, 0.0, 1.0, 0.6, 0.3, 1.0)
    detail: tuple[float, ...] = (0.02, 0.02, 0.02, 0.02, 0.05, 0.1)
    """Gain of the random rest of the six dense channels."""
    rotation: float = 0.05
    translation: float = 0.2
    scale: float = 0.3


_PRESETS = {
    "tiny": _Outputs((0.37, 0.28, 0.3, 0.5, 1.2), offsets=(0.045, -0.1, 1.0, 0.6, 0.3, 1.0)),
    "giant": _Outputs((0.76, 0.6, 0.35, 0.5, 1.2), offsets=(-0.04, 0.03, 1.0, 0.75, 0.3, 1.0)),
}
_RAMP = 2.0
"""Largest value of the positional ramps; other channels of the encoder's output have a standard deviation near 2."""
_QUIET = 0.03
"""Gain of whatever random weights write to a lane."""
_HEADROOM = 3.0
"""Added to the lanes before the regressor's ReLU, so that negative values pass too."""
NOISE_BLOCK = 1 << 17
"""Numbers made at a time, so that every step after the first finds them in the processor's cache."""


def preset_names() -> tuple[str, ...]:
    """Return names that follow ``preset:``."""
    return (*TRAINED, *_PRESETS)


def native_sizes(model_id: str) -> str | list[tuple[int, int]]:
    """Return the ``resolutions`` of a build that suit a model: (width, height) of its training images, or ``"all"``."""
    return _NATIVE_SIZES.get(model_id, "all")


def load_preset(name: str) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Return configuration and weights (canonical name -> float32) of a preset, the same bits on every machine.

    A random tensor is made of the raw 64-bit words of a NumPy bit generator, keyed by the SHA-256 of preset and tensor
    name, by integer to float conversion, one multiplication and one addition, all of which round identically
    everywhere. Raises ModelNotFoundError if there is no such preset.
    """
    config = parse_config(preset_config(name), PREFIX + name)
    if name in TRAINED:
        return config, read_checkpoint(TRAINED[name], config)
    shapes = expected_tensors(config)
    with ThreadPoolExecutor(min(8, usable_processors())) as pool:  # NumPy's loops release the interpreter lock
        arrays = dict(zip(shapes, pool.map(lambda item: _tensor(name, *item), shapes.items()), strict=True))
    _add_lanes(arrays, config, _PRESETS[name])
    return config, {key: torch.from_numpy(array) for key, array in arrays.items()}


def save_model(
    folder: str | Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], what: str = "model"
) -> Path:
    """Write a folder in upstream's format (``config.json``, ``model.safetensors``) and return it.

    An older model that was written here is replaced. Raises OutputError if the folder cannot be written, or holds
    files of these names that are not ours.
    """
    folder = Path(folder)
    kind = f"{what} weights"
    with atomic_folder(folder, kind, ours=lambda old: _our_files(old, kind)) as temporary:
        weights = temporary / _WEIGHTS
        try:
            save_file(tensors, weights, metadata={"format": "pt", "generator": marker(kind)})
        except SafetensorError as error:
            raise OutputError(f"{folder}: cannot write the {what} ({error})") from None
        weights.chmod(0o644)  # safetensors lets only the owner read what it writes
        (temporary / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _our_files(folder: Path, kind: str) -> list[str]:
    """Return which files of an older model folder :func:`save_model` wrote.

    Raises:
        OutputError: weights or a configuration that it did not write.
    """
    there = [name for name in (_CONFIG, _WEIGHTS) if os.path.lexists(folder / name)]
    if not there:
        return []
    try:
        with safe_open(folder / _WEIGHTS, framework="np") as weights:
            ours = (weights.metadata() or {}).get("generator") == marker(kind)
    except (OSError, SafetensorError):
        ours = False
    if not ours:
        raise OutputError(f"{folder}: holds {there[0]}, which mapengine did not write; choose another folder")
    return there


def preset_config(name: str) -> dict[str, Any]:
    """Return a preset's ``config.json`` in upstream's format (a fresh copy). Raises ModelNotFoundError."""
    if name not in preset_names():
        there = ", ".join(PREFIX + preset for preset in preset_names())
        raise ModelNotFoundError(f"{PREFIX}{name}: no such preset; there are {there}")
    if name in TRAINED:
        return dict(json.loads((TRAINED[name] / "config.json").read_text(encoding="utf-8")))
    config = copy.deepcopy(_GIANT)
    if name == "tiny":
        _merge(config, _TINY)
    return config


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _global(name: str, channels: int) -> dict[str, Any]:
    return {"name": name, "encoder_str": "global_rep_encoder", "in_chans": channels}


def _dense(name: str, channels: int) -> dict[str, Any]:
    return {"name": name, "encoder_str": "dense_rep_encoder", "in_chans": channels, "apply_pe": False}


_GIANT: dict[str, Any] = {
    "name": "mapanything",
    "encoder_config": {
        "name": "dinov2_giant_24_layers",
        "encoder_str": "dinov2",
        "size": "giant",
        "keep_first_n_layers": 24,
        "norm_returned_features": False,
        "with_registers": False,
        "data_norm_type": "dinov2",
        "uses_torch_hub": True,
    },
    "geometric_input_config": {
        "ray_dirs_encoder_config": _dense("ray_dirs_encoder", 3),
        "depth_encoder_config": _dense("depth_encoder", 1),
        "cam_rot_encoder_config": _global("cam_rot_quats_encoder", 4),
        "cam_trans_encoder_config": _global("cam_trans_encoder", 3),
        "scale_encoder_config": _global("scale_encoder", 1),
    },
    "info_sharing_config": {
        "model_type": "alternating_attention",
        "model_return_type": "intermediate_features",
        "custom_positional_encoding": None,
        "module_args": {
            "name": "aat_16_layers_vitg_dim_ifr",
            "depth": 16,
            "dim": 1536,
            "num_heads": 24,
            "mlp_ratio": 4,
            "qkv_bias": True,
            "qk_norm": False,
            "init_values": 1e-5,
            "indices": [7, 11],
            "norm_intermediate": True,
            "distinguish_ref_and_non_ref_views": True,
        },
    },
    "pred_head_config": {
        "type": "dpt+pose",
        "feature_head": {"feature_dim": 256, "hooks": [0, 1, 2, 3]},
        "regressor_head": {"output_dim": 6},
        "pose_head": {"num_resconv_block": 2, "rot_representation_dim": 4},
        "scale_head": {"output_dim": 1},
        "adaptor_type": "raydirs+depth+pose+confidence+mask",
        **{key: {"name": key, **options} for key, options in ADAPTOR_OPTIONS.items()},
    },
    "use_register_tokens_from_encoder": True,
    "info_sharing_mlp_layer_str": "swiglufused",
}
"""The shipped v1.1 network."""

_TINY: dict[str, Any] = {
    "encoder_config": {
        "name": "tiny",
        "keep_first_n_layers": 3,
        "arch_override": {"embed_dim": 64, "depth": 5, "num_heads": 2, "img_size": 518},
    },
    "geometric_input_config": {
        "ray_dirs_encoder_config": {"intermediate_dims": [8, 16, 24]},
        "depth_encoder_config": {"intermediate_dims": [8, 16, 24]},
        "cam_rot_encoder_config": {"intermediate_dims": [16, 24, 32]},
        "cam_trans_encoder_config": {"intermediate_dims": [16, 24, 32]},
        "scale_encoder_config": {"intermediate_dims": [16, 24, 32]},
    },
    "info_sharing_config": {
        "module_args": {"name": "tiny", "depth": 6, "dim": 64, "num_heads": 2, "indices": [2, 4]},
    },
    "pred_head_config": {
        "feature_head": {"feature_dim": 24, "layer_dims": [8, 12, 16, 24]},
        "pose_head": {"hidden_dim": 64},
        "scale_head": {"hidden_dim": 24},
    },
}
"""What differs in the tiny network. Heads are 32 wide, the least that fused attention kernels take."""


# ---- weights --------------------------------------------------------------------------------------------------------


def noise(seed: str, count: int, half: float = 1.0, centre: float = 0.0) -> Array:
    """Draw numbers uniform in [centre - half, centre + half], shape (count,): both halves of raw 64-bit words as signed
    integers."""
    digest = hashlib.sha256(seed.encode()).digest()
    words = np.random.SFC64(int.from_bytes(digest, "little"))
    values = np.empty(count, np.float32)
    for start in range(0, count, NOISE_BLOCK):
        part = values[start : start + NOISE_BLOCK]
        part[:] = words.random_raw((part.size + 1) // 2).astype("<u8", copy=False).view("<i4")[: part.size]
        part *= np.float32(half * 2.0**-31)
        part += np.float32(centre)
    return values


def _tensor(preset: str, name: str, shape: tuple[int, ...]) -> Array:
    if name == "info_sharing.view_pos_table":  # row 0 of a table of sines and cosines
        return np.tile(np.array([0, 1], np.float32), -(-shape[1] // 2))[None, : shape[1]].copy()
    centre, half = _range(preset, name, shape)
    seed, count = f"{preset}:{name}", math.prod(shape)
    if np.ndim(half) == np.ndim(centre) == 0:
        return noise(seed, count, half, centre).reshape(shape)
    per_row = (-1,) + (1,) * (len(shape) - 1)
    values = noise(seed, count).reshape(shape)
    values *= np.asarray(half, np.float32).reshape(per_row)
    values += np.asarray(centre, np.float32).reshape(per_row)
    return values


def _range(preset: str, name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the centre and half-width of a tensor's uniform distribution; scalars, or one number per output row."""
    outputs = _PRESETS[preset]
    owner, _, kind = name.rpartition(".")
    if kind == "gamma":
        return 0.2, 0.1
    if name == "scale_token" or kind in ("cls_token", "pos_embed"):
        return 0.0, 0.8
    if len(shape) == 1 and "norm" in owner.rpartition(".")[2]:
        return (1.0, 0.1) if kind == "weight" else (0.0, 0.1)
    if kind == "bias":
        if owner == "dense_head.1.conv2.2":
            return outputs.offsets, 0.02
        if owner == "pose_head.fc_rot":
            return (0.0, 0.0, 0.0, 1.0), 0.02
        return 0.0, 0.05
    gain: Any = 1.0
    if owner == "dense_head.1.conv2.2":
        gain = np.asarray(outputs.detail)
    elif owner == "pose_head.fc_rot":
        gain = outputs.rotation
    elif owner == "pose_head.fc_t":
        gain = outputs.translation
    elif owner == "scale_head.output_proj":
        gain = outputs.scale
    elif "resConfUnit" in owner or owner.endswith("patch_embed.proj"):
        gain = 0.7  # keeps residual sums and the spread between bright and dark patches small
    elif owner.startswith(("pose_head", "scale_head")) or owner.endswith(("w12", "qkv", "conv2.0")):
        gain = 1.3  # makes up for what a ReLU, a gate or an average over tokens takes away
    # A transposed convolution with stride = kernel adds up one tap per input channel.
    upsampler = owner.endswith(("input_process.0.0.1", "input_process.1.0.1"))
    fan_in = shape[0] if upsampler else math.prod(shape[1:])
    return 0.0, gain * math.sqrt(3.0 / fan_in)


def _add_lanes(tensors: dict[str, Array], config: ModelConfig, outputs: _Outputs) -> None:
    """Give the random network its structure (see the module's description), in place."""
    lanes = slice(0, 5)
    # Even channels, because the reference-view embedding adds to odd ones; each ramp once with either sign, because
    # their difference is free of the mean that a LayerNorm takes away.
    ramps = [0, 2, 4, 6]
    for name, tensor in tensors.items():
        writes_to_ramps = name.endswith((".gamma", "norm_layer.weight", "norm_layer.bias", "patch_embed.proj.weight"))
        if writes_to_ramps and name != "fusion_norm_layer.weight":
            tensor[ramps] *= np.float32(_QUIET)
        elif re.search(r"resConfUnit\d\.conv2\.|input_process\.\d\.1\.|refinenet4\.out_conv\.", name):
            tensor[lanes] *= np.float32(_QUIET)

    grid = config.image_encoder.grid
    ramp = ((np.arange(grid) * 2 - (grid - 1)) / (grid - 1) * _RAMP).astype(np.float32)  # left to right
    embedding = tensors["encoder.model.pos_embed"][0, 1:].reshape(grid, grid, -1)
    embedding[:, :, ramps] *= np.float32(_QUIET)
    for channel, sign in zip(ramps, (1, -1, 1, -1), strict=True):
        embedding[:, :, channel] += np.float32(sign) * (ramp[None, :] if channel < 4 else ramp[:, None])

    def connect(name: str, count: int) -> None:
        """Pass column i on in row i of a layer, at the middle tap."""
        weight = tensors[f"{name}.weight"]
        weight[:count] *= np.float32(_QUIET)
        middle = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
        middle[np.arange(count), np.arange(count)] += np.float32(1)

    project = tensors["dense_head.0.input_process.2.0.0.weight"][:, :, 0, 0]
    project[:2] *= np.float32(_QUIET)  # rows 2, 3 and 4 stay random projections of the second tap
    project[[0, 0, 1, 1], ramps] += np.array([0.5, -0.5, 0.5, -0.5], np.float32)
    reduce = tensors["dense_head.0.input_process.2.1.weight"]
    for lane in range(5):
        if lane < 2:
            reduce[lane, lane, 1, 1] += np.float32(1)
        else:
            reduce[lane, lane] += np.float32(1 / 9)
    for level in (3, 2, 1):
        connect(f"dense_head.0.scratch.refinenet{level}.out_conv", 5)
    connect("dense_head.1.conv1", 5)
    connect("dense_head.1.conv2.0", 5)
    tensors["dense_head.1.conv2.0.bias"][lanes] += np.float32(_HEADROOM)
    last = tensors["dense_head.1.conv2.2.weight"][:, :, 0, 0]
    for lane, (channel, gain) in enumerate(zip((0, 1, 3, 4, 5), outputs.lanes, strict=True)):
        last[channel, lane] = gain
        tensors["dense_head.1.conv2.2.bias"][channel] -= np.float32(gain * _HEADROOM)
