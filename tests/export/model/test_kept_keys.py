"""The keys that a layer keeps, and that the network attends to them alone."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from mapengine.export.model.network.kept_keys import key_indices
from mapengine.export.model.network.model import with_key_shares
from mapengine.export.model.reference import MapAnything, load_model
from mapengine.runtime.bundle.kernel_attention import kept_keys


@pytest.fixture(scope="module")
def tiny() -> MapAnything:
    return load_model("preset:tiny")


def features(views: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(views)
    return (
        torch.randn(1, views, rows, columns, 64, generator=generator),
        torch.randn(1, views, 1, 64, generator=generator),
    )


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize(("views", "rows", "columns"), [(1, 1, 1), (1, 4, 5), (2, 3, 7), (5, 8, 10)])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
def test_what_is_kept(views: int, rows: int, columns: int, extra: int, share: float) -> None:
    found = key_indices(views, rows, columns, extra, share, torch.device("cpu")).tolist()
    tokens = rows * columns + extra
    assert len(set(found)) == len(found) == kept_keys(views, rows, columns, extra, share)
    special = {view * tokens + rows * columns + index for view in range(views) for index in range(extra)}
    assert set(range(rows * columns)) | special | {views * tokens} <= set(found)
    for view in range(1, views):
        grid = {(index - view * tokens) for index in found if view * tokens <= index < view * tokens + rows * columns}
        down, across = {cell // columns for cell in grid}, {cell % columns for cell in grid}
        assert len(grid) == len(down) * len(across)  # whole rows of a grid
        for side, places in ((rows, sorted(down)), (columns, sorted(across))):
            steps = {b - a for a, b in itertools.pairwise(places)}
            assert not steps or max(steps) - min(steps) <= 1  # evenly spread
            assert abs(places[0] - (side - 1 - places[-1])) <= 1  # and in the middle


def test_a_quarter_is_every_second_row_and_column() -> None:
    found = key_indices(2, 4, 6, 1, 0.25, torch.device("cpu"))
    assert found.tolist() == [*range(24), *(25 + cell for cell in (7, 9, 11, 19, 21, 23)), 24, 49, 50]


def test_a_layer_attends_to_the_kept_keys_alone(tiny: MapAnything) -> None:
    few = with_key_shares(tiny, {2: 0.25})
    layer = few.info_sharing.self_attention_blocks[2].attn
    views, rows, columns = 3, 4, 5
    length = views * (rows * columns + 1) + 1
    x = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(0))
    keys = key_indices(views, rows, columns, 1, 0.25, x.device)
    with torch.no_grad():
        found = layer(x, keys)
        query, key, value = layer.qkv(x).reshape(1, length, 3, 2, 32).permute(2, 0, 3, 1, 4)
        mask = torch.zeros(length, dtype=torch.bool).index_fill(0, keys, True).expand(length, length)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        wanted = layer.proj(out.transpose(1, 2).reshape(1, length, 64))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_other_keys_change_the_network_and_not_the_one_that_it_came_from(tiny: MapAnything) -> None:
    given = features(3, 4, 5)
    with torch.no_grad():
        before = tiny.aggregate(*given)[0].final
        few = with_key_shares(tiny, {0: 0.25, 4: 0.5})
        changed = few.aggregate(*given)[0].final
        assert torch.equal(tiny.aggregate(*given)[0].final, before)
        assert not torch.allclose(changed, before, atol=1e-4)
        one = features(1, 4, 5)  # a single view is the reference view, whose keys are all kept
        torch.testing.assert_close(few.aggregate(*one)[0].final, tiny.aggregate(*one)[0].final, rtol=1e-5, atol=1e-5)
    assert few.config.aggregator.key_shares == ((0, 0.25), (4, 0.5))
    assert tiny.config.aggregator.key_shares == ()
    assert few.weights_hash() == tiny.weights_hash()
    assert few.scale_token is tiny.scale_token
    assert with_key_shares(tiny, {}) is tiny
