from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.export.model.config import BlockConfig, ModelConfig
from mapengine.export.model.config_json import parse_config, read_config, swiglu_hidden
from mapengine.runtime.errors import ConfigError, ModelNotFoundError

DATA = Path(__file__).parents[2] / "data"
FULL = json.loads((DATA / "full_v11" / "config.json").read_text())
CONFIGS = ["full_v11/config.json", "full_v1/config.json", "v11_tiny/config.json", "v1_tiny/config.json"]


def change(path: str, value: Any) -> dict[str, Any]:
    """The shipped v1.1 configuration with one value replaced, or removed if ``value`` is Ellipsis."""
    data = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    node = data
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return data


def test_shipped_v11() -> None:
    config = read_config(DATA / "full_v11" / "config.json")
    block = BlockConfig(dim=1536, num_heads=24, mlp="swiglu", mlp_hidden=4096, layer_scale=True)
    assert config.image_encoder.block == config.aggregator.block == block
    assert (config.image_encoder.depth, config.image_encoder.grid, config.image_encoder.final_norm) == (24, 37, False)
    assert (config.aggregator.depth, config.aggregator.taps) == (16, (7, 11))
    assert config.aggregator.reference_view_embedding
    assert config.use_class_token
    assert config.geometry_encoder.rays == config.geometry_encoder.depth == (588, 768, 1024)
    assert config.geometry_encoder.rotation == config.geometry_encoder.scale == (128, 256, 512)
    assert config.head.layer_dims == (96, 192, 384, 768)
    assert (config.head.feature_dim, config.head.pose_hidden, config.head.scale_hidden) == (256, 784, 196)
    assert config.source == FULL


def test_shipped_v1_takes_upstreams_defaults() -> None:
    config = read_config(DATA / "full_v1" / "config.json")
    assert config.image_encoder.block == BlockConfig(1024, 16, "mlp", 4096, True)
    assert (config.image_encoder.depth, config.image_encoder.final_norm) == (24, True)
    assert config.aggregator.block == BlockConfig(768, 12, "mlp", 3072, False)
    assert (config.aggregator.depth, config.aggregator.taps) == (24, (11, 17))
    assert not config.use_class_token


def test_tiny_overrides() -> None:
    config = read_config(DATA / "v11_tiny" / "config.json")
    assert config.image_encoder.block == BlockConfig(48, 3, "swiglu", 128, True)
    assert config.image_encoder.depth == 3
    assert config.head.pose_hidden == 64
    assert read_config(DATA / "v1_tiny" / "config.json").image_encoder.grid == 5


def test_reference_view_embedding_can_be_off() -> None:
    assert not read_config(DATA / "v11_tiny" / "config_no_ref_view.json").aggregator.reference_view_embedding


@pytest.mark.parametrize(("size", "block"), [("small", (384, 6, 1536)), ("base", (768, 12, 3072))])
def test_other_dinov2_sizes(size: str, block: tuple[int, int, int]) -> None:
    data = change("encoder_config.size", size)
    del data["encoder_config"]["keep_first_n_layers"]
    encoder = parse_config(data).image_encoder
    assert (encoder.block.dim, encoder.block.num_heads, encoder.block.mlp_hidden) == block
    assert (encoder.block.mlp, encoder.depth) == ("mlp", 12)


@pytest.mark.parametrize("name", CONFIGS)
def test_runtime_keys_are_ignored(name: str) -> None:
    """Upstream writes these back into its dictionaries before it saves them."""
    data = json.loads((DATA / name).read_text())
    before = parse_config(copy.deepcopy(data))
    width = before.image_encoder.block.dim
    for key, value in data["geometric_input_config"].items():
        if key.endswith("_config"):
            value.update(enc_embed_dim=width, patch_size=14)
    data["encoder_config"]["torch_hub_force_reload"] = False
    data["info_sharing_config"]["module_args"].update(
        input_embed_dim=width,
        mlp_layer="<class 'uniception.models.utils.transformer_blocks.Mlp'>",
        custom_positional_encoding=None,
        pretrained_checkpoint_path="/somewhere/else.pth",
    )
    data["pred_head_config"]["feature_head"].update(patch_size=14, input_feature_dims=[width] * 4)
    data["pred_head_config"]["regressor_head"]["input_feature_dim"] = before.head.feature_dim
    data["pred_head_config"]["pose_head"].update(patch_size=14, input_feature_dim=width)
    data["pred_head_config"]["scale_head"]["input_feature_dim"] = width
    data["a_key_of_the_future"] = {"x": 1}
    assert parse_config(data) == before


UNSUPPORTED = [
    ("encoder_config.encoder_str", "croco"),
    ("encoder_config.size", "huge"),
    ("encoder_config.with_registers", True),
    ("encoder_config.patch_size", 16),
    ("encoder_config.data_norm_type", "dust3r"),
    ("encoder_config.keep_first_n_layers", 41),
    ("encoder_config.keep_first_n_layers", 0),
    ("info_sharing_config.model_type", "global_attention"),
    ("info_sharing_config.model_return_type", "no_intermediate_features"),
    ("info_sharing_config.custom_positional_encoding", "rope"),
    ("info_sharing_config.module_args.qk_norm", True),
    ("info_sharing_config.module_args.qkv_bias", False),
    ("info_sharing_config.module_args.norm_intermediate", False),
    ("info_sharing_config.module_args.use_pe_for_non_reference_views", True),
    ("info_sharing_config.module_args.use_entropy_scaling", True),
    ("info_sharing_config.module_args.indices", [7]),
    ("info_sharing_config.module_args.indices", [3, 7, 11]),
    ("info_sharing_config.module_args.indices", [11, 7]),
    ("info_sharing_config.module_args.indices", [7, 16]),
    ("info_sharing_config.module_args.indices", [-1, 3]),
    ("info_sharing_config.module_args.indices", 2),
    ("info_sharing_config.module_args.num_heads", 7),
    ("info_sharing_config.module_args.dim", "1536"),
    ("info_sharing_config.module_args.depth", True),
    ("info_sharing_config.module_args.depth", 16.5),
    ("info_sharing_config.module_args.mlp_ratio", 0),
    ("info_sharing_config.module_args.mlp_ratio", math.nan),
    ("info_sharing_config.module_args.init_values", 0),
    ("info_sharing_config.module_args.init_values", "small"),
    ("info_sharing_config.module_args.distinguish_ref_and_non_ref_views", 1),
    ("info_sharing_mlp_layer_str", "swiglu"),
    ("info_sharing_mlp_layer_str", ["mlp"]),
    ("use_register_tokens_from_encoder", None),
    ("geometric_input_config.ray_dirs_encoder_config.apply_pe", True),
    ("geometric_input_config.ray_dirs_encoder_config.apply_pe", ...),
    ("geometric_input_config.ray_dirs_encoder_config.in_chans", 4),
    ("geometric_input_config.depth_encoder_config.encoder_str", "sparse_rep_encoder"),
    ("geometric_input_config.depth_encoder_config.in_chans", 2),
    ("geometric_input_config.cam_rot_encoder_config.in_chans", 6),
    ("geometric_input_config.scale_encoder_config", None),
    ("geometric_input_config.scale_encoder_config.intermediate_dims", [128, 256]),
    ("geometric_input_config.scale_encoder_config.intermediate_dims", [128, 256, 0]),
    ("pred_head_config.type", "dpt"),
    ("pred_head_config.adaptor_type", "raydirs+depth+pose"),
    ("pred_head_config.dpt_adaptor.depth_mode", "linear"),
    ("pred_head_config.dpt_adaptor.depth_vmax", 100.0),
    ("pred_head_config.dpt_adaptor.confidence_type", "sigmoid"),
    ("pred_head_config.dpt_adaptor.confidence_vmin", 0),
    ("pred_head_config.dpt_adaptor.ray_directions_mode", "exp"),
    ("pred_head_config.dpt_adaptor.ray_directions_normalize_to_unit_sphere", False),
    ("pred_head_config.dpt_adaptor.ray_directions_normalize_to_unit_image_plane", True),
    ("pred_head_config.dpt_adaptor.ray_directions_clamp_min_of_z_dir", True),
    ("pred_head_config.pose_adaptor.quaternions_normalize", False),
    ("pred_head_config.pose_adaptor.cam_trans_mode", "exp"),
    ("pred_head_config.scale_adaptor.mode", "linear"),
    ("pred_head_config.scale_adaptor.vmin", 0),
    ("pred_head_config.feature_head.hooks", [0, 1, 2]),
    ("pred_head_config.feature_head.layer_dims", [96, 192, 384]),
    ("pred_head_config.feature_head.feature_dim", 255),
    ("pred_head_config.feature_head.use_bn", True),
    ("pred_head_config.regressor_head.output_dim", 5),
    ("pred_head_config.regressor_head.hidden_dims", [64, 64]),
    ("pred_head_config.pose_head.rot_representation_dim", 6),
    ("pred_head_config.scale_head.output_dim", 2),
]


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(change(field, value), "some/config.json")
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    assert field in message
    assert "supported:" in message or "expected" in message
    assert "\n" not in message


SECTIONS = [
    "encoder_config",
    "encoder_config.size",
    "info_sharing_config",
    "info_sharing_config.module_args",
    "info_sharing_config.module_args.indices",
    "geometric_input_config",
    "geometric_input_config.cam_trans_encoder_config",
    "pred_head_config",
    "pred_head_config.type",
    "pred_head_config.dpt_adaptor",
    "pred_head_config.dpt_adaptor.depth_mode",
    "pred_head_config.scale_head",
]


@pytest.mark.parametrize("field", SECTIONS)
def test_missing_fields_are_named(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field.replace('.', '[.]')} is missing; expected "):
        parse_config(change(field, ...))


@pytest.mark.parametrize("value", [None, [], "text", 3, True])
def test_sections_of_the_wrong_type(value: Any) -> None:
    with pytest.raises(ConfigError, match="pred_head_config: expected a JSON object"):
        parse_config(change("pred_head_config", value))
    with pytest.raises(ConfigError, match="expected a JSON object"):
        parse_config(value)


def _paths(node: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{key}.")
    return found


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(field=st.sampled_from(_paths(FULL)), value=JSON_VALUES | st.just(...))
def test_any_altered_field_gives_a_config_or_a_config_error(field: str, value: Any) -> None:
    try:
        outcome: ModelConfig | str = parse_config(change(field, value))
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, ModelConfig) or field.split(".")[0] in outcome


def test_swiglu_width_is_dinov2s() -> None:
    assert swiglu_hidden(4 * 1536) == 4096
    assert swiglu_hidden(4 * 48) == 128


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_config(tmp_path / "config.json")
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"not valid JSON|nested too deeply"):
            read_config(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
