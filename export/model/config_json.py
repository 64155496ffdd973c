"""Upstream's ``config.json`` -> :class:`ModelConfig`.

The file holds MapAnything's constructor arguments. Whatever it leaves out takes upstream's defaults, values that
upstream writes back at run time are ignored, and every setting that would change the network into one that mapengine
does not implement is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapengine.runtime.errors import ConfigError, ModelNotFoundError
from mapengine.runtime.system.reading import read_file
from mapengine.runtime.typed_json.text import Document, parse_json

from .config import (
    PATCH_SIZE,
    AggregatorConfig,
    BlockConfig,
    GeometryEncoderConfig,
    HeadConfig,
    ImageEncoderConfig,
    MlpKind,
    ModelConfig,
)

DINOV2_SIZES: dict[str, tuple[int, int, int, MlpKind]] = {
    "small": (384, 12, 6, "mlp"),
    "base": (768, 12, 12, "mlp"),
    "large": (1024, 24, 16, "mlp"),
    "giant": (1536, 40, 24, "swiglu"),
}
"""DINOv2 ViT-{S,B,L,g}/14: width, blocks, heads, feed-forward kind (Oquab et al. 2023, table 17)."""

_MLP_LAYERS: dict[str, MlpKind] = {"mlp": "mlp", "swiglufused": "swiglu"}
_MISSING: Any = object()
_LARGEST = 2**24  # bytes


def swiglu_hidden(width: int) -> int:
    """Return the hidden width of a gated MLP that replaces a plain one of ``width`` units (2/3 of it, rounded up to
    8)."""
    return (width * 2 // 3 + 7) // 8 * 8


def read_config(path: str | Path) -> ModelConfig:
    """Read upstream's ``config.json`` (the JSON tokens ``Infinity`` and ``-Infinity`` are allowed).

    Raises ModelNotFoundError if there is no such file, ConfigError if it is not readable JSON or not supported.
    """
    path = Path(path)
    try:
        text = read_file(path, _LARGEST)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: no such file; a model folder holds config.json beside its weights") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    document = Document(str(path), "download the file again", ConfigError)
    return parse_config(parse_json(text, document, infinities=True), str(path))


def parse_config(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Build the typed configuration from upstream's constructor arguments.

    ``where`` names the origin in messages. Raises ConfigError that names the field, its value and what is supported.
    """
    root = _Fields.of(data, where)
    image_encoder = _image_encoder(root.child("encoder_config"))
    width = image_encoder.block.dim
    mlp = _MLP_LAYERS[root.choice("info_sharing_mlp_layer_str", tuple(_MLP_LAYERS), "mlp")]
    head = root.child("pred_head_config")
    return ModelConfig(
        image_encoder=image_encoder,
        geometry_encoder=_geometry_encoder(root.child("geometric_input_config"), width),
        aggregator=_aggregator(root.child("info_sharing_config"), mlp),
        head=_head(head),
        use_class_token=root.flag("use_register_tokens_from_encoder", False),
        source=dict(data),
    )


def _image_encoder(fields: _Fields) -> ImageEncoderConfig:
    fields.only("encoder_str", "dinov2")
    size = fields.choice("size", tuple(DINOV2_SIZES))
    fields.only("with_registers", False, False)
    fields.only("patch_size", PATCH_SIZE, PATCH_SIZE)
    fields.only("data_norm_type", "dinov2", "dinov2")
    dim, blocks, heads, mlp = DINOV2_SIZES[size]
    grid = 37  # 518 / 14: the size that DINOv2 was trained to
    if fields.get("arch_override") is not None:
        override = fields.child("arch_override")
        dim = override.integer("embed_dim", dim)
        blocks = override.integer("depth", blocks)
        heads = override.integer("num_heads", heads)
        pixels = override.integer("img_size", grid * PATCH_SIZE)
        if pixels % PATCH_SIZE:
            raise override.error("img_size", pixels, f"a multiple of {PATCH_SIZE}")
        grid = pixels // PATCH_SIZE
        override.divides("num_heads", heads, dim)
    keep = fields.get("keep_first_n_layers")
    depth = blocks if keep is None else fields.integer("keep_first_n_layers")
    if depth > blocks:
        raise fields.error("keep_first_n_layers", depth, f"at most the {blocks} blocks of the encoder")
    hidden = swiglu_hidden(4 * dim) if mlp == "swiglu" else 4 * dim
    return ImageEncoderConfig(
        block=BlockConfig(dim=dim, num_heads=heads, mlp=mlp, mlp_hidden=hidden, layer_scale=True),
        depth=depth,
        grid=grid,
        final_norm=fields.flag("norm_returned_features", True),
    )


def _geometry_encoder(fields: _Fields, width: int) -> GeometryEncoderConfig:
    def dense(key: str, channels: int) -> tuple[int, int, int]:
        child = fields.child(key)
        child.only("encoder_str", "dense_rep_encoder")
        child.only("in_chans", channels, 3)
        child.only("apply_pe", False, True)  # upstream's default is on; every shipped configuration switches it off
        child.only("patch_size", PATCH_SIZE, PATCH_SIZE)
        child.only("enc_embed_dim", width, width)
        a, b, c = child.integers("intermediate_dims", 3, (588, 768, 1024))
        return a, b, c

    def pooled(key: str, channels: int) -> tuple[int, int, int]:
        child = fields.child(key)
        child.only("encoder_str", "global_rep_encoder")
        child.only("in_chans", channels, 3)
        child.only("enc_embed_dim", width, width)
        a, b, c = child.integers("intermediate_dims", 3, (128, 256, 512))
        return a, b, c

    return GeometryEncoderConfig(
        rays=dense("ray_dirs_encoder_config", 3),
        depth=dense("depth_encoder_config", 1),
        rotation=pooled("cam_rot_encoder_config", 4),
        translation=pooled("cam_trans_encoder_config", 3),
        scale=pooled("scale_encoder_config", 1),
    )


def _aggregator(fields: _Fields, mlp: MlpKind) -> AggregatorConfig:
    fields.only("model_type", "alternating_attention")
    fields.only("model_return_type", "intermediate_features")
    fields.only("custom_positional_encoding", None, None)
    args = fields.child("module_args")
    args.only("custom_positional_encoding", None, None)
    args.only("qkv_bias", True, True)
    args.only("norm_intermediate", True, True)
    for switch in (
        "qk_norm",
        "use_pe_for_non_reference_views",
        "use_scalable_softmax",
        "use_entropy_scaling",
        "intermediates_only",
    ):
        args.only(switch, False, False)
    dim = args.integer("dim", 768)
    heads = args.integer("num_heads", 12)
    args.divides("num_heads", heads, dim)
    depth = args.integer("depth", 12)
    ratio = args.number("mlp_ratio", 4.0)
    hidden = int(dim * ratio)
    if hidden < 1:
        raise args.error("mlp_ratio", ratio, "a positive number")
    first, second = args.integers("indices", 2, None, minimum=0)
    if not first < second < depth:
        raise args.error("indices", [first, second], f"two increasing block indices below depth {depth}")
    initial = args.get("init_values")
    if initial is not None and args.number("init_values") <= 0:
        raise args.error("init_values", initial, "null (no LayerScale) or a positive number")
    return AggregatorConfig(
        block=BlockConfig(
            dim=dim,
            num_heads=heads,
            mlp=mlp,
            mlp_hidden=swiglu_hidden(hidden) if mlp == "swiglu" else hidden,
            layer_scale=initial is not None,
        ),
        depth=depth,
        taps=(first, second),
        reference_view_embedding=args.flag("distinguish_ref_and_non_ref_views", True),
    )


ADAPTOR_OPTIONS: dict[str, dict[str, Any]] = {
    "dpt_adaptor": {
        "ray_directions_mode": "linear",
        "ray_directions_normalize_to_unit_sphere": True,
        "ray_directions_normalize_to_unit_image_plane": False,
        "ray_directions_vmin": -math.inf,
        "ray_directions_vmax": math.inf,
        "ray_directions_clamp_min_of_z_dir": False,
        "depth_mode": "exp",
        "depth_vmin": 0,
        "depth_vmax": math.inf,
        "confidence_type": "exp",
        "confidence_vmin": 1,
        "confidence_vmax": math.inf,
    },
    "pose_adaptor": {
        "cam_trans_mode": "linear",
        "cam_trans_vmin": -math.inf,
        "cam_trans_vmax": math.inf,
        "quaternions_mode": "linear",
        "quaternions_normalize": True,
        "quaternions_vmin": -math.inf,
        "quaternions_vmax": math.inf,
    },
    "scale_adaptor": {"mode": "exp", "vmin": 1e-8, "vmax": math.inf},
}
"""The output activations that the network implements ("MapAnything inference", adaptors)."""


def _head(fields: _Fields) -> HeadConfig:
    fields.only("type", "dpt+pose")
    fields.only("adaptor_type", "raydirs+depth+pose+confidence+mask")
    for name, options in ADAPTOR_OPTIONS.items():
        adaptor = fields.child(name)
        for option, value in options.items():
            adaptor.only(option, value)

    feature = fields.child("feature_head")
    feature.only("hooks", [0, 1, 2, 3], [0, 1, 2, 3])
    feature.only("use_bn", False, False)
    feature.only("output_width_ratio", 1, 1)
    feature.only("nonlinearity", "relu", "relu")
    feature.only("patch_size", PATCH_SIZE, PATCH_SIZE)
    feature_dim = feature.integer("feature_dim", 256)
    if feature_dim % 2:
        raise feature.error("feature_dim", feature_dim, "an even number")
    a, b, c, d = feature.integers("layer_dims", 4, (96, 192, 384, 768))

    regressor = fields.child("regressor_head")
    regressor.only("output_dim", 6)
    regressor.only("nonlinearity", "relu", "relu")
    if regressor.get("hidden_dims") is not None:
        regressor.only("hidden_dims", [feature_dim // 2, feature_dim // 2])

    pose = fields.child("pose_head")
    pose.only("rot_representation_dim", 4, 4)
    pose.only("patch_size", PATCH_SIZE, PATCH_SIZE)

    scale = fields.child("scale_head")
    scale.only("output_dim", 1)
    return HeadConfig(
        layer_dims=(a, b, c, d),
        feature_dim=feature_dim,
        pose_hidden=pose.integer("hidden_dim", 4 * PATCH_SIZE**2),
        pose_blocks=pose.integer("num_resconv_block", 2, minimum=0),
        scale_hidden=scale.integer("hidden_dim", 196),
        scale_layers=scale.integer("num_mlp_layers", 2, minimum=0),
    )


class _Fields:
    """A JSON object that knows its place in the file and checks what is taken out of it."""

    def __init__(self, data: Mapping[str, Any], where: str, path: str) -> None:
        self._data = data
        self._where = where
        self._path = path

    @classmethod
    def of(cls, data: Any, where: str, path: str = "") -> _Fields:
        if not isinstance(data, Mapping):
            place = f"{where}: {path}" if path else where
            raise ConfigError(f"{place}: expected a JSON object, found {_show(data)}")
        return cls(data, where, path)

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def error(self, key: str, value: Any, supported: str) -> ConfigError:
        return ConfigError(f"{self._where}: {self._name(key)} is {_show(value)}; supported: {supported}")

    def get(self, key: str, default: Any = None) -> Any:
        return self._data.get(key, default)

    def _need(self, key: str, default: Any, kind: str) -> Any:
        value = self._data.get(key, default)
        if value is _MISSING:
            raise ConfigError(f"{self._where}: {self._name(key)} is missing; expected {kind}")
        return value

    def child(self, key: str) -> _Fields:
        return _Fields.of(self._need(key, _MISSING, "a JSON object"), self._where, self._name(key))

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        value = self._need(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        value = self._need(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
            raise self.error(key, value, "a finite number")
        return value

    def integer(self, key: str, default: Any = _MISSING, minimum: int = 1) -> int:
        value = self._need(key, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= 1 << 20:
            raise self.error(key, value, f"a whole number from {minimum} to {1 << 20}")
        return value

    def integers(self, key: str, count: int, default: Any = None, minimum: int = 1) -> list[int]:
        value = self._need(key, _MISSING if default is None else default, f"a list of {count} whole numbers")
        if (
            not isinstance(value, list | tuple)
            or len(value) != count
            or any(isinstance(v, bool) or not isinstance(v, int) or not minimum <= v <= 1 << 20 for v in value)
        ):
            raise self.error(key, value, f"a list of {count} whole numbers from {minimum}")
        return list(value)

    def choice(self, key: str, options: tuple[str, ...], default: Any = _MISSING) -> str:
        value = self._need(key, default, " or ".join(options))
        if not isinstance(value, str) or value not in options:
            raise self.error(key, value, ", ".join(options))
        return value

    def only(self, key: str, supported: Any, default: Any = _MISSING) -> None:
        """Read the one value that the network implements; ``default`` is what upstream takes when the key is absent."""
        value = self._need(key, default, _show(supported))
        if isinstance(value, tuple):
            value = list(value)
        if isinstance(value, bool) != isinstance(supported, bool) or value != supported:
            raise self.error(key, value, _show(supported))

    def divides(self, key: str, heads: int, dim: int) -> None:
        if dim % heads:
            raise self.error(key, heads, f"a divisor of the width {dim}")


def _show(value: Any) -> str:
    """Return a value as JSON, shortened for a message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
