"""The parts of the optimiser that have a right answer of their own."""

from __future__ import annotations

import pytest
import torch

from mapengine.export.training.optimizer import orthogonal


@pytest.mark.parametrize("shape", [(3, 24, 96), (2, 96, 24), (1, 32, 32)])
def test_matrices_keep_their_directions_and_lose_their_sizes(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor(10.0) ** torch.arange(-1, shape[0] - 1)[:, None, None]
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    assert found.dtype == matrices.dtype
    values = left.transpose(1, 2) @ found @ right.transpose(1, 2)
    sizes = values.diagonal(dim1=1, dim2=2)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    assert (values - torch.diag_embed(sizes)).abs().max() < 0.03
