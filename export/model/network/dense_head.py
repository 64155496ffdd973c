"""Dense head (DPT and regressor) and pose head.

Source: DPT (Ranftl et al., arXiv 2103.13413) as MapAnything (arXiv 2509.13414) uses it. Maps are (N, C, h, w) inside,
(N, H, W, ...) at the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PATCH_SIZE, HeadConfig

_MIN_NORM = 1e-8


class ResidualConvUnit(nn.Module):
    """Pre-activated pair of 3 x 3 convolutions around the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) -> (N, C, h, w)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class FusionBlock(nn.Module):
    """Adds a skip map, refines, projects and doubles the resolution.

    Doubling by a constant factor, not to a computed size: ONNX Runtime keeps the layout of its convolutions then.
    """

    def __init__(self, channels: int, has_skip: bool) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualConvUnit(channels)
        self.resConfUnit2 = ResidualConvUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (N, C, h, w) -> (N, C, 2h, 2w)."""
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        # The 1 x 1 convolution commutes with the bilinear upsampling (sample weights sum to 1): a quarter of the work.
        x = self.out_conv(self.resConfUnit2(x))
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """Namespace of the four fusion blocks, coarsest last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.refinenet1 = FusionBlock(channels, has_skip=True)
        self.refinenet2 = FusionBlock(channels, has_skip=True)
        self.refinenet3 = FusionBlock(channels, has_skip=True)
        self.refinenet4 = FusionBlock(channels, has_skip=False)


class DptFeature(nn.Module):
    """Four token maps of one resolution to one feature map of 8 times that resolution."""

    def __init__(self, in_channels: Sequence[int], config: HeadConfig) -> None:
        super().__init__()
        a, b, c, d = config.layer_dims
        features = config.feature_dim

        def branch(index: int, width: int, resize: nn.Module | None) -> nn.Sequential:
            project: list[nn.Module] = [nn.Conv2d(in_channels[index], width, 1)]
            if resize is not None:
                project.append(resize)
            return nn.Sequential(nn.Sequential(*project), nn.Conv2d(width, features, 3, padding=1, bias=False))

        self.input_process = nn.ModuleList(
            [
                branch(0, a, nn.ConvTranspose2d(a, a, 4, stride=4)),
                branch(1, b, nn.ConvTranspose2d(b, b, 2, stride=2)),
                branch(2, c, None),
                branch(3, d, nn.Conv2d(d, d, 3, stride=2, padding=1)),
            ]
        )
        self.scratch = Scratch(features)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map four maps (N, C_i, h, w) -> (N, F, 8h, 8w)."""
        h, w = maps[0].shape[2:]
        level1, level2, level3, level4 = (
            process(feature) for process, feature in zip(self.input_process, maps, strict=True)
        )
        path = self.scratch.refinenet4(level4)[:, :, :h, :w]  # an odd h or w was rounded up when halved
        path = self.scratch.refinenet3(path, level3)
        path = self.scratch.refinenet2(path, level2)
        return self.scratch.refinenet1(path, level1)


class Regressor(nn.Module):
    """Feature map to six channels per pixel: ray (3), depth, confidence, mask logit."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        half = config.feature_dim // 2
        self.conv1 = nn.Conv2d(config.feature_dim, half, 3, padding=1)
        self.conv2 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, 6, 1))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map (N, F, 8h, 8w) -> (N, 6, H, W)."""
        x = F.interpolate(self.conv1(x), size=(height, width), mode="bilinear", align_corners=True)
        return self.conv2(x)


class PoseResidual(nn.Module):
    """Residual stack of three 1 x 1 convolutions, each followed by ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Conv2d(channels, channels, 1)
        self.res_conv2 = nn.Conv2d(channels, channels, 1)
        self.res_conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) -> (N, C, h, w)."""
        return x + F.relu(self.res_conv3(F.relu(self.res_conv2(F.relu(self.res_conv1(x))))))


class PoseHead(nn.Module):
    """Token map of one view to its camera-to-world pose, in the frame of the reference view."""

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        hidden = config.pose_hidden
        self.proj = nn.Conv2d(dim, hidden, 1)
        self.res_conv = nn.ModuleList(PoseResidual(hidden) for _ in range(config.pose_blocks))
        self.more_mlps = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.fc_t = nn.Linear(hidden, 3)
        self.fc_rot = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, D, h, w) -> translation (N, 3) and unit quaternion xyzw (N, 4)."""
        x = self.proj(x)
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=(2, 3)))
        quaternion = self.fc_rot(x)
        norm = quaternion.norm(dim=1, keepdim=True).clamp(min=_MIN_NORM)
        return self.fc_t(x), quaternion / norm


class DenseHead(nn.Sequential):
    """DPT feature extractor and regressor; the positions 0 and 1 are upstream's parameter names."""

    def __init__(self, in_channels: Sequence[int], config: HeadConfig) -> None:
        super().__init__(DptFeature(in_channels, config), Regressor(config))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map four maps (N, C_i, h, w) -> (N, 6, H, W) raw channels."""
        h, w = maps[0].shape[2:]
        feature, regressor = self[0], self[1]
        return regressor(feature(maps), PATCH_SIZE * h, PATCH_SIZE * w)


def dense_outputs(raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convert raw channels to physical quantities (MapAnything's adaptors).

    Args:
        raw: (N, 6, H, W).

    Returns:
        Unit ray directions (N, H, W, 3), depth along the ray (N, H, W, 1) up to the metric scaling factor, confidence
        (N, H, W) above 1, and the logit of the non-ambiguous mask (N, H, W).
    """
    # Divided before the channels go last: a quotient over an axis of three is slow in ONNX Runtime.
    rays = raw[:, 0:3]
    rays = (rays / rays.norm(dim=1, keepdim=True).clamp(min=_MIN_NORM)).permute(0, 2, 3, 1)
    depth = torch.exp(raw[:, 3]).unsqueeze(-1)
    return rays, depth, 1 + torch.exp(raw[:, 4]), raw[:, 5]
