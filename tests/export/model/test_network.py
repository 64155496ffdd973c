from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from mapengine.export.model.network.dense_head import FusionBlock, dense_outputs
from mapengine.export.model.network.geometry_encoder import DenseEncoder
from mapengine.export.model.network.image_encoder import cubic_resize_matrix
from mapengine.export.model.network.transformer import Attention
from mapengine.export.model.reference import MapAnything
from mapengine.runtime.inputs.prepared import MODALITIES

from ...goldens import ATOL, DATA, read_views

Reference = Callable[..., MapAnything]
Arrays = dict[str, NDArray[Any]]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of nested tuples and lists, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [x for part in value for x in tensors_in(part)] if isinstance(value, tuple | list) else []


@contextmanager
def recorded(network: nn.Module, names: Iterable[str]) -> Iterator[Arrays]:
    """First input (``<name>.in``) and outputs (``<name>.out0``, ...) of modules; several calls are concatenated."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    found: Arrays = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, outputs: Any) -> None:
            seen[f"{name}.in"] += tensors_in(inputs)[:1]
            for index, output in enumerate(tensors_in(outputs)):
                seen[f"{name}.out{index}"].append(output.clone())  # the caller may add to it in place

        return record

    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found |= {name: torch.cat(values).numpy() for name, values in seen.items()}


ENCODERS = ("ray_dirs", "depth", "depth_scale", "cam_rot", "cam_trans", "cam_trans_scale")


@pytest.fixture(scope="module", params=["v11_tiny", "v1_tiny"])
def run(request: pytest.FixtureRequest, reference: Reference) -> tuple[MapAnything, Arrays, Arrays]:
    """Network, golden intermediates, and the same intermediates of our run under the golden names and layout."""
    network = reference(request.param)
    golden = dict(np.load(DATA / request.param / "stages.npz"))
    depth = network.config.aggregator.depth
    blocks = {f"aat_block_{i}": f"info_sharing.self_attention_blocks.{i}" for i in range(depth)}
    encoders = [f"{name}_encoder" for name in ENCODERS]
    heads = ["dense_head.0", "dense_head", "pose_head.fc_t", "pose_head.fc_rot", "scale_head.output_proj"]
    others = ["encoder", "fusion_norm_layer", "info_sharing"]
    with recorded(network, [*encoders, *blocks.values(), *heads, *others]) as found:
        network.predict(read_views(golden, 3))

    h, w = golden["encoder.0"].shape[2:]

    def as_map(x: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(x.reshape(3, h, w, -1), -1, 1)

    ours = {"encoder.0": as_map(found["encoder.out0"]), "encoder.1": np.moveaxis(found["encoder.out1"], 1, 2)}
    for name in encoders:
        ours[f"{name}.0"], value = found[f"{name}.in"], found[f"{name}.out0"]
        ours[f"{name}.1"] = np.moveaxis(value, -1, 1) if value.ndim == 4 else value
    ours["fusion.0"] = found["fusion_norm_layer.in"].reshape(3, h, w, -1)
    ours["fusion.1"] = found["fusion_norm_layer.out0"].reshape(3, h, w, -1)
    for name, module in blocks.items():
        ours[f"{name}.0"], ours[f"{name}.1"] = found[f"{module}.in"], found[f"{module}.out0"]
    first, second, final = (as_map(found[f"info_sharing.out{i}"]) for i in range(3))
    ours |= {"info_sharing.0": final, "info_sharing.2": first, "info_sharing.3": second}
    ours["info_sharing.1"] = found["info_sharing.out3"][:, :, None]
    ours["dpt_feature.0"], ours["dense_raw.0"] = found["dense_head.0.out0"][:, ::4], found["dense_head.out0"]
    ours["pose_raw.0"] = np.concatenate([found["pose_head.fc_t.out0"], found["pose_head.fc_rot.out0"]], axis=1)
    ours["scale_raw.0"] = found["scale_head.output_proj.out0"][:, :, None]
    return network, golden, ours


def rows_of(name: str) -> slice:
    """The golden run sends all three views through every geometry encoder, ours those that have geometry: views 0 and 1
    have rays, view 0 alone has a pose and depth (view 1 passes zeros through the depth encoder, as upstream does)."""
    if name.startswith(("cam_", "depth_scale")):
        return slice(0, 1)
    return slice(0, 2) if name.startswith(("ray_dirs", "depth_encoder")) else slice(None)


def test_every_stored_intermediate_is_reproduced(run: tuple[MapAnything, Arrays, Arrays]) -> None:
    _, golden, ours = run
    stored = [name for name in golden if name.partition(".")[0] not in ("in", "pre", "fwd")]
    assert len(stored) == 29
    for name in stored:
        want, got = golden[name][rows_of(name)], ours[name][rows_of(name)]
        assert got.shape == want.shape, name
        assert np.abs(got - want).max() <= ATOL, name


@pytest.mark.parametrize("encoder", ["depth_scale", "cam_rot", "cam_trans", "cam_trans_scale"])
def test_global_encoder_alone(run: tuple[MapAnything, Arrays, Arrays], encoder: str) -> None:
    network, golden, _ = run
    found = network.get_submodule(f"{encoder}_encoder")(torch.from_numpy(golden[f"{encoder}_encoder.0"]))
    assert np.abs(found.numpy() - golden[f"{encoder}_encoder.1"]).max() <= ATOL


def test_block_alone(run: tuple[MapAnything, Arrays, Arrays]) -> None:
    network, golden, _ = run
    found = network.info_sharing.self_attention_blocks[0](torch.from_numpy(golden["aat_block_0.0"]))
    assert np.abs(found.numpy() - golden["aat_block_0.1"]).max() <= ATOL


# Pieces against PyTorch's own operators


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 60), grid=st.sampled_from([5, 16, 37]), offset=st.sampled_from([0.0, 0.1]))
def test_cubic_resize_matrix_is_bicubic_interpolation(size: int, grid: int, offset: float) -> None:
    scale = (size + offset) / grid
    matrix = cubic_resize_matrix(torch.arange(size).double(), torch.tensor(scale, dtype=torch.float64), grid)
    assert matrix.shape == (size, grid)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(size, dtype=torch.float64))
    table = torch.rand(1, 1, grid, grid, generator=torch.Generator().manual_seed(size)).double()
    expected = F.interpolate(table, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    if expected.shape[-1] == size:  # PyTorch derives the size from the scale, and may round it down
        assert torch.allclose(matrix @ table[0, 0] @ matrix.T, expected[0, 0], atol=1e-9)


def test_cubic_resize_matrix_of_scale_one_is_the_identity() -> None:
    matrix = cubic_resize_matrix(torch.arange(37.0), torch.tensor(1.0), 37)
    assert torch.equal(matrix, torch.eye(37))


def test_native_grid_uses_the_stored_table_bit_for_bit(reference: Reference) -> None:
    encoder = reference("v1_tiny").encoder.model
    assert torch.equal(encoder.patch_positions(encoder.grid, encoder.grid), encoder.pos_embed[0, 1:])
    other = encoder.patch_positions(encoder.grid, encoder.grid + 1)
    assert other.shape == (encoder.grid * (encoder.grid + 1), encoder.pos_embed.shape[-1])


@pytest.mark.parametrize(("rows", "columns"), [(37, 37), (37, 28), (18, 37), (37, 12), (1, 1), (40, 50)])
def test_positions_follow_the_oracle_resize(reference: Reference, rows: int, columns: int) -> None:
    """The table as DINOv2 resizes it: a scale with an offset of 0.1, no anti-aliasing."""
    encoder = reference("preset:tiny").encoder.model
    grid = encoder.grid
    if rows == columns == grid:
        expected = encoder.pos_embed[0, 1:]
    else:
        table = encoder.pos_embed[0, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        resized = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
        assert resized.shape[2:] == (rows, columns)
        expected = resized.permute(0, 2, 3, 1).reshape(rows * columns, -1)
    assert torch.allclose(encoder.patch_positions(rows, columns), expected, atol=2e-5)


def test_patches_are_unshuffled_channel_then_row_then_column() -> None:
    encoder = DenseEncoder(3, (8, 8, 8), 8)
    seen: list[Tensor] = []
    encoder.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.rand(2, 28, 42, 3)
    with torch.no_grad():
        assert encoder(pixels).shape == (2, 2, 3, 8)
    assert torch.equal(seen[0], F.pixel_unshuffle(pixels.permute(0, 3, 1, 2), 14))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4)])
def test_projection_commutes_with_upsampling(height: int, width: int) -> None:
    """The fusion block projects before it doubles the resolution; upstream does so afterwards."""
    block = FusionBlock(6, has_skip=False)
    x = torch.rand(2, 6, height, width)
    with torch.no_grad():
        doubled = F.interpolate(block.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)
        expected = block.out_conv(doubled)
        assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 4), (7, 9)])
def test_only_the_coarsest_level_is_cropped(height: int, width: int, reference: Reference) -> None:
    """Upstream resizes every level to twice its size, and crops it to what the next one has."""
    network = reference("preset:tiny")
    feature = network.dense_head[0]
    channels = [branch[0][0].in_channels for branch in feature.input_process]
    maps = [torch.rand(2, c, height, width, generator=torch.Generator().manual_seed(c)) for c in channels]
    sizes = [(factor * height, factor * width) for factor in (1, 2, 4, 8)]
    with torch.no_grad():
        skips = [process(values) for process, values in zip(feature.input_process, maps, strict=True)]
        path = None
        for level, size in zip((4, 3, 2, 1), sizes, strict=True):
            block: Any = getattr(feature.scratch, f"refinenet{level}")
            added = skips[level - 1] if path is None else path + block.resConfUnit1(skips[level - 1])
            refined = block.out_conv(block.resConfUnit2(added))
            doubled = [2 * side for side in refined.shape[2:]]
            path = F.interpolate(refined, doubled, mode="bilinear", align_corners=True)[:, :, : size[0], : size[1]]
        assert torch.equal(feature(maps), path)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = Attention(12, 3)
    x = torch.rand(2, 5, 12)
    with torch.no_grad():
        query, key, value = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in attention.qkv(x).split(12, dim=-1))
        weights = torch.softmax(query @ key.transpose(2, 3) / 2, dim=-1)
        expected = attention.proj((weights @ value).transpose(1, 2).reshape(2, 5, 12))
        assert torch.allclose(attention(x), expected, atol=1e-6)


def test_outputs_are_unit_rays_positive_depth_and_confidence_above_one() -> None:
    raw = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0)) * 5
    raw[0, :3, 0, 0] = 0
    rays, depth, confidence, logits = dense_outputs(raw)
    length = rays.norm(dim=-1)
    assert length[0, 0, 0] == 0  # no direction at all, and no NaN
    assert torch.allclose(length[1], torch.ones(4, 5))
    assert depth.shape == (2, 4, 5, 1)
    assert (depth > 0).all()
    assert (confidence >= 1).all()
    assert torch.equal(logits, raw[:, 5])


def test_absent_modalities_cannot_leak(reference: Reference) -> None:
    """Not even NaN in the inputs of a modality that is switched off reaches the features."""
    network = reference("preset:tiny")
    clean = {
        "ray_directions": torch.rand(2, 28, 42, 3),
        "depth": torch.rand(2, 28, 42, 1),
        "depth_log_scale": torch.rand(2, 1),
        "rotation": torch.rand(2, 4),
        "translation": torch.rand(2, 3),
        "translation_log_scale": torch.rand(2, 1),
    }
    inputs_of = {
        "ray_directions": ["ray_directions"],
        "depth": ["depth"],
        "depth_scale": ["depth_log_scale"],
        "pose": ["rotation", "translation"],
        "pose_scale": ["translation_log_scale"],
    }
    assert tuple(inputs_of) == MODALITIES
    nothing = network.encode_geometry(**clean, modality_flags=torch.zeros(2, 5))
    assert torch.equal(nothing, torch.zeros_like(nothing))
    for column, modality in enumerate(MODALITIES):
        flags = torch.ones(2, 5)
        flags[:, column] = 0
        poisoned = {
            name: torch.full_like(value, float("nan")) if name in inputs_of[modality] else value
            for name, value in clean.items()
        }
        found = network.encode_geometry(**poisoned, modality_flags=flags)
        assert torch.equal(found, network.encode_geometry(**clean, modality_flags=flags)), modality
        assert torch.isfinite(found).all()
        assert not torch.equal(found, network.encode_geometry(**clean, modality_flags=torch.ones(2, 5))), modality


def test_modalities_add_up(reference: Reference) -> None:
    network = reference("preset:tiny")
    generator = torch.Generator().manual_seed(1)
    shapes = {"ray_directions": (28, 42, 3), "depth": (28, 42, 1), "depth_log_scale": (1,)}
    shapes |= {"rotation": (4,), "translation": (3,), "translation_log_scale": (1,)}
    inputs = {name: torch.rand(1, *shape, generator=generator) for name, shape in shapes.items()}
    parts = sum(network.encode_geometry(**inputs, modality_flags=row[None]) for row in torch.eye(5))
    together = network.encode_geometry(**inputs, modality_flags=torch.ones(1, 5))
    assert torch.allclose(together, parts, atol=1e-5)
