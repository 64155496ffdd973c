"""Images as bytes to what the image encoder takes, as a module: the stage ``image_normalizer`` is it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mapengine.runtime.inputs.normalization import level_table


class ImageNormalization(nn.Module):
    """Look up the normalised value of every byte.

    There are 256 per channel. So every backend gives the bits of :func:`mapengine.runtime.inputs.normalization.
    normalize_image`, also one that would compute a division by a constant as a product.
    """

    levels: Tensor
    first: Tensor

    def __init__(self, data_norm_type: str) -> None:
        """Make it for one way of normalising."""
        super().__init__()
        table = torch.from_numpy(level_table(data_norm_type))  # (3, 256)
        self.register_buffer("levels", table.reshape(-1))
        self.register_buffer("first", torch.arange(3, dtype=torch.int32) * table.shape[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn uint8 (N, H, W, 3) into float32 (N, 3, H, W)."""
        # Over float32, because that is the only type which TensorRT converts bytes to.
        places = pixels.to(torch.float32).to(torch.int32) + self.first
        return self.levels[places.permute(0, 3, 1, 2)]
