"""The stages that are exported: tensor names, axes, example inputs and the modules that trace them.

Four cut the network where its leading dimension changes meaning, so that memory is bounded by chunks and encoded views
can be kept: see ``docs/contributing/architecture.md``. Images are normalised before them (``image_normalizer``), and
post-processing follows them (``scene``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mapengine.runtime.bundle.stages import NORMALIZER, SCENE
from mapengine.runtime.inputs.prepared import MODALITIES
from mapengine.runtime.postprocessing.scene_stage import OPTIONS

from ..model.config import PATCH_SIZE, ModelConfig
from ..model.network import MapAnythingNetwork, ViewFeatures
from ..model.normalization import ImageNormalization
from ..model.postprocessing import PostProcessing

HEIGHT, WIDTH = f"{PATCH_SIZE}*patch_rows", f"{PATCH_SIZE}*patch_columns"
Axes = tuple[int | str, ...]
"""Symbolic shape: an int is fixed, a string names a dynamic axis; ``14*x`` is derived from the axis ``x``."""

_EXAMPLE_VIEWS = 3  # a count of 1 would be specialised by the tracer
_EXAMPLE_PATCHES = (4, 5)  # rows, columns: different, so that no axis is taken for another


@dataclass(frozen=True)
class StageTensor:
    """Name, symbolic shape and dtype (``float32``, ``uint8`` or ``bool``) of one input or output of a stage."""

    name: str
    axes: Axes
    dtype: str = "float32"

    def example(self, sizes: dict[str, int]) -> Tensor:
        """Return random values with every dynamic axis replaced by ``sizes``."""
        shape = [a if isinstance(a, int) else sizes[a] for a in self.axes]
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        if self.dtype == "uint8":
            return (255 * values).to(torch.uint8)
        return values > 0.5 if self.dtype == "bool" else values


@dataclass(frozen=True)
class Stage:
    """One graph: its interface and the module whose forward is traced."""

    name: str
    leading_axis: str
    inputs: tuple[StageTensor, ...]
    outputs: tuple[StageTensor, ...]
    module: nn.Module

    def examples(self) -> tuple[Tensor, ...]:
        """Return example inputs for tracing."""
        rows, columns = _EXAMPLE_PATCHES
        sizes = {
            self.leading_axis: _EXAMPLE_VIEWS,
            "patch_rows": rows,
            "patch_columns": columns,
            HEIGHT: PATCH_SIZE * rows,
            WIDTH: PATCH_SIZE * columns,
        }
        return tuple(spec.example(sizes) for spec in self.inputs)


class _Traced(nn.Module):
    """A stage of ``network`` as a module with flat tensor inputs and outputs."""

    def __init__(self, network: nn.Module, run: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.network = network
        self.run = run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.run(self.network, *inputs)


def _image_encoder(network: MapAnythingNetwork, images: Tensor) -> tuple[Tensor, ...]:
    features, extra_tokens = network.encode_images(images)
    return (features,) if extra_tokens is None else (features, extra_tokens)


def _geometry_encoder(network: MapAnythingNetwork, *inputs: Tensor) -> tuple[Tensor, ...]:
    return (network.encode_geometry(*inputs),)


def _aggregator(
    network: MapAnythingNetwork, features: Tensor, extra_tokens: Tensor | None = None
) -> tuple[Tensor, ...]:
    extra = None if extra_tokens is None else extra_tokens.unsqueeze(0)
    maps, scale = network.aggregate(features.unsqueeze(0), extra)
    return (*(x.squeeze(0) for x in maps), scale.squeeze(0))


def _dense_head(network: MapAnythingNetwork, *maps: Tensor) -> tuple[Tensor, ...]:
    return network.decode(ViewFeatures(*maps))


def make_stages(network: MapAnythingNetwork) -> dict[str, Stage]:
    """Describe the four stages of the network, in running order, keyed by name."""
    config: ModelConfig = network.config
    encoder_dim, dim = config.image_encoder.block.dim, config.aggregator.block.dim

    def maps(leading: str, channels: int) -> Axes:
        return (leading, "patch_rows", "patch_columns", channels)

    def extra(leading: str) -> tuple[StageTensor, ...]:
        return (StageTensor("extra_tokens", (leading, 1, encoder_dim)),) if config.use_class_token else ()

    def view_features(leading: str) -> tuple[StageTensor, ...]:
        channels = (encoder_dim, dim, dim, dim)
        return tuple(StageTensor(f"view_features_{i}", maps(leading, c)) for i, c in enumerate(channels))

    chunk = "views_in_chunk"
    pixels: Axes = (chunk, HEIGHT, WIDTH)
    specs = (
        (
            "image_encoder",
            chunk,
            (StageTensor("images", (chunk, 3, HEIGHT, WIDTH)),),
            (StageTensor("patch_features", maps(chunk, encoder_dim)), *extra(chunk)),
            _image_encoder,
        ),
        (
            "geometry_encoder",
            chunk,
            (
                StageTensor("ray_directions", (*pixels, 3)),
                StageTensor("depth", (*pixels, 1)),
                StageTensor("depth_log_scale", (chunk, 1)),
                StageTensor("rotation", (chunk, 4)),
                StageTensor("translation", (chunk, 3)),
                StageTensor("translation_log_scale", (chunk, 1)),
                StageTensor("modality_flags", (chunk, len(MODALITIES))),
            ),
            (StageTensor("geometry_features", maps(chunk, encoder_dim)),),
            _geometry_encoder,
        ),
        (
            "aggregator",
            "views",
            (StageTensor("features", maps("views", encoder_dim)), *extra("views")),
            (*view_features("views"), StageTensor("metric_scaling_factor", (1,))),
            _aggregator,
        ),
        (
            "dense_head",
            chunk,
            view_features(chunk),
            (
                StageTensor("ray_directions", (*pixels, 3)),
                StageTensor("depth_along_ray", (*pixels, 1)),
                StageTensor("confidence", pixels),
                StageTensor("mask_logits", pixels),
                StageTensor("cam_trans", (chunk, 3)),
                StageTensor("cam_quats", (chunk, 4)),
            ),
            _dense_head,
        ),
    )
    return {
        name: Stage(name, leading, inputs, outputs, _Traced(network, run).eval())
        for name, leading, inputs, outputs, run in specs
    }


def make_scene_stage(data_norm_type: str) -> Stage:
    """Describe the stage of post-processing, for images that are normalised in this way."""
    chunk = "views_in_chunk"
    pixels: Axes = (chunk, HEIGHT, WIDTH)
    inputs = (
        StageTensor("ray_directions", (*pixels, 3)),
        StageTensor("unscaled_depth_along_ray", (*pixels, 1)),
        StageTensor("confidence", pixels),
        StageTensor("mask_logits", pixels),
        StageTensor("unscaled_cam_trans", (chunk, 3)),
        StageTensor("cam_quats", (chunk, 4)),
        StageTensor("metric_scaling_factor", (1,)),
        StageTensor("images", (chunk, 3, HEIGHT, WIDTH)),
        StageTensor("kept", pixels, "bool"),
        StageTensor("options", (len(OPTIONS),)),
    )
    outputs = (
        StageTensor("pts3d", (*pixels, 3)),
        StageTensor("pts3d_cam", (*pixels, 3)),
        StageTensor("depth_along_ray", (*pixels, 1)),
        StageTensor("cam_trans", (chunk, 3)),
        StageTensor("non_ambiguous_mask", pixels, "bool"),
        StageTensor("img_no_norm", (*pixels, 3)),
        StageTensor("depth_z", (*pixels, 1)),
        StageTensor("intrinsics", (chunk, 3, 3)),
        StageTensor("camera_poses", (chunk, 4, 4)),
        StageTensor("mask", (*pixels, 1), "bool"),
    )
    module = _Traced(PostProcessing(data_norm_type), lambda whole, *tensors: tuple(whole(*tensors)))
    return Stage(SCENE, chunk, inputs, outputs, module.eval())


def make_normalizer_stage(data_norm_type: str) -> Stage:
    """Describe the stage that normalises images in this way."""
    chunk = "views_in_chunk"
    inputs = (StageTensor("pixels", (chunk, HEIGHT, WIDTH, 3), "uint8"),)
    outputs = (StageTensor("images", (chunk, 3, HEIGHT, WIDTH)),)
    module = _Traced(ImageNormalization(data_norm_type), lambda whole, pixels: (whole(pixels),))
    return Stage(NORMALIZER, chunk, inputs, outputs, module.eval())
