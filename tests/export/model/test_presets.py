from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mapengine.export.model import presets
from mapengine.export.model.checkpoint import expected_tensors, parameter_count, read_checkpoint, weights_sha256
from mapengine.export.model.config import ModelConfig
from mapengine.export.model.config_json import parse_config, read_config
from mapengine.export.model.network.model import HeadOutputs, MapAnythingNetwork, ViewFeatures
from mapengine.export.model.presets import NOISE_BLOCK, load_preset, noise, preset_config, preset_names, save_model
from mapengine.runtime.errors import ModelNotFoundError, OutputError

DATA = Path(__file__).parents[2] / "data"
TINY_SHA256 = "b14a08b3296f4bee83776a10dc90dedb46e4fa4cc179db8308e5a73b3c053d89"


@pytest.fixture(scope="module")
def tiny() -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    return load_preset("tiny")


@pytest.fixture(scope="module")
def network(tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> MapAnythingNetwork:
    model = MapAnythingNetwork(tiny[0])
    model.load_state_dict(tiny[1])
    return model.eval()


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    """A normalised image (3, H, W) with energy at every scale, as photos have."""
    numbers = np.random.default_rng(seed)
    image = torch.zeros(1, 3, height, width)
    for cells in (2, 4, 8, 16, 32):
        coarse = torch.from_numpy(numbers.standard_normal((1, 3, cells, cells)).astype(np.float32))
        image += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") / math.sqrt(5)
    return image[0]


def predict(network: MapAnythingNetwork, images: torch.Tensor) -> tuple[HeadOutputs, float]:
    with torch.no_grad():
        features, extra = network.encode_images(images)
        assert extra is not None
        views, scale = network.aggregate(features[None], extra[None])
        return network.decode(ViewFeatures(*(x[0] for x in views))), scale.item()


def test_names() -> None:
    assert preset_names() == ("nano", "tiny", "giant")
    for unknown in ("", "nano2", "Tiny"):
        with pytest.raises(
            ModelNotFoundError, match=r"no such preset; there are preset:nano, preset:tiny, preset:giant"
        ):
            load_preset(unknown)


def test_giant_is_the_shipped_size() -> None:
    config = parse_config(preset_config("giant"))
    assert config == read_config(DATA / "full_v11" / "config.json")
    assert parameter_count(config) == 1_228_491_222


def test_tiny_is_a_small_v11(tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> None:
    config, tensors = tiny
    assert 100_000 < parameter_count(config) < 1_000_000
    assert config.use_class_token
    assert not config.image_encoder.final_norm
    assert config.aggregator.block.mlp == config.image_encoder.block.mlp == "swiglu"
    assert config.image_encoder.block.dim // config.image_encoder.block.num_heads >= 32
    assert {name: tuple(t.shape) for name, t in tensors.items()} == expected_tensors(config)
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in tensors.values())


def test_weights_are_the_same_bits_everywhere(tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> None:
    assert weights_sha256(tiny[1]) == TINY_SHA256
    assert weights_sha256(load_preset("tiny")[1]) == TINY_SHA256


def test_no_tensor_is_constant_or_repeated(tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> None:
    for name, tensor in tiny[1].items():
        if name not in ("info_sharing.view_pos_table", "scale_head.output_proj.bias"):
            assert len(tensor.unique()) > 0.5 * tensor.numel(), name
            assert bool((tensor != 0).all()), name
    table = tiny[1]["info_sharing.view_pos_table"]
    assert table.tolist() == [[0.0, 1.0] * (table.shape[1] // 2)]


def test_noise_fills_odd_lengths_and_blocks() -> None:
    long = noise("seed", NOISE_BLOCK + 3)
    assert np.array_equal(long[:7], noise("seed", 7))
    assert long.min() >= -1
    assert long.max() <= 1
    assert abs(float(long.mean())) < 0.01
    assert float(long.std()) == pytest.approx(1 / math.sqrt(3), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(392, 518), (112, 140)])
def test_tiny_predicts_something_plausible(network: MapAnythingNetwork, height: int, width: int) -> None:
    images = torch.stack([picture(height, width, seed) for seed in range(2)])
    outputs, scale = predict(network, images)
    assert all(bool(x.isfinite().all()) for x in outputs)
    rays = outputs.ray_directions
    tilt = rays[..., :2] / rays[..., 2:]
    assert rays[..., 2].min() > 0.3
    assert tilt[:, :, 0, 0].mean() < -0.25
    assert tilt[:, :, -1, 0].mean() > 0.25
    assert tilt[:, 0, :, 1].mean() < -0.2
    assert tilt[:, -1, :, 1].mean() > 0.2
    assert outputs.depth_along_ray.min() > 0.8
    assert outputs.depth_along_ray.max() < 6
    assert outputs.depth_along_ray.log().std(dim=(1, 2)).min() > 0.05
    assert outputs.confidence.min() > 1.1
    assert outputs.confidence.max() < 30
    kept = (outputs.mask_logits > 0).float().mean()
    assert kept > 0.6
    assert outputs.cam_trans.abs().max() < 1.5
    assert outputs.cam_quats[:, 3].min() > 0.9
    assert 0.5 < scale < 2


@pytest.mark.slow
def test_every_parameter_matters(tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> None:
    """Each tensor has a gradient in some output of two views that give everything the network can take."""
    config, tensors = tiny
    model = MapAnythingNetwork(config)
    model.load_state_dict(tensors)
    images = torch.stack([picture(56, 70, seed) for seed in range(2)])
    features, extra = model.encode_images(images)
    assert extra is not None
    for name, channels in (("ray_dirs_encoder", 3), ("depth_encoder", 1)):
        pixels = torch.stack([picture(56, 70, seed)[:channels] for seed in (5, 6)])
        features = features + getattr(model, name)(pixels.permute(0, 2, 3, 1))
    for name, channels in (
        ("cam_rot_encoder", 4),
        ("cam_trans_encoder", 3),
        ("depth_scale_encoder", 1),
        ("cam_trans_scale_encoder", 1),
    ):
        features = (
            features + getattr(model, name)(torch.linspace(-1, 1, 2 * channels).reshape(2, channels))[:, None, None]
        )
    views, scale = model.aggregate(features[None], extra[None])
    outputs = model.decode(ViewFeatures(*(x[0] for x in views)))
    sum((x * x).sum() for x in (*outputs, scale)).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_predictions_depend_on_the_image(network: MapAnythingNetwork) -> None:
    first, _ = predict(network, torch.stack([picture(112, 140, seed) for seed in (0, 1)]))
    second, _ = predict(network, torch.stack([picture(112, 140, seed) for seed in (0, 2)]))
    for one, other in zip(first, second, strict=True):
        assert not torch.allclose(one[0], other[0], atol=1e-4), "the other view is not seen"
        assert not torch.allclose(one[1], other[1], atol=1e-3), "the view itself is not seen"


def save_tiny(folder: Path) -> Path:
    return save_model(folder, preset_config("tiny"), load_preset("tiny")[1], "preset")


def test_saved_preset_is_upstreams_format(tmp_path: Path, tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> None:
    folder = save_tiny(tmp_path / "new" / "model")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = read_config(folder / "config.json")
    assert config == tiny[0]
    assert weights_sha256(read_checkpoint(folder, config)) == TINY_SHA256
    stored = json.loads((folder / "config.json").read_text())
    assert stored["pred_head_config"]["dpt_adaptor"]["depth_vmax"] == math.inf


def test_a_preset_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="it is a file, not a folder"):
        save_tiny(tmp_path / "file")

    def full_disk(*_: object, **__: object) -> None:
        Path(_[1]).write_bytes(b"half")  # type: ignore[arg-type]
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(presets, "save_file", full_disk)
    with pytest.raises(OutputError, match="the disk is full"):
        save_tiny(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_configs_are_fresh_copies() -> None:
    preset_config("giant")["encoder_config"]["size"] = "changed"
    assert preset_config("giant")["encoder_config"]["size"] == "giant"
