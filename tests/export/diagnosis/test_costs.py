"""Formulas of work against PyTorch's counter and the network's own weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mapengine.export.diagnosis.costs import STAGES, CallShape, Cost, stage_costs, total
from mapengine.export.model.config_json import parse_config
from mapengine.export.model.network import MapAnythingNetwork, ViewFeatures
from mapengine.export.model.presets import preset_config

REQUESTS = [CallShape(1, 3, 4), CallShape(2, 5, 3, with_geometry=1), CallShape(5, 8, 10, with_geometry=5)]


def counted(network: MapAnythingNetwork, stage: str, request: CallShape) -> int:
    """What the counter sees in a stage, on tensors without values."""
    config = network.config
    n, h, w = request.views, request.rows, request.columns
    width, dim = config.image_encoder.block.dim, config.aggregator.block.dim

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    with FlopCounterMode(display=False) as counter:
        if stage == "image_encoder":
            network.encode_images(empty(n, 3, 14 * h, 14 * w))
        elif stage == "geometry_encoder" and request.with_geometry:
            g = request.with_geometry
            maps = [empty(g, 14 * h, 14 * w, c) for c in (3, 1)]
            network.encode_geometry(*maps, *(empty(g, c) for c in (1, 4, 3, 1, 5)))
        elif stage == "aggregator":
            extra = empty(1, n, 1, width) if config.use_class_token else None
            network.aggregate(empty(1, n, h, w, width), extra)
        elif stage == "dense_head":
            network.decode(ViewFeatures(*(empty(n, h, w, c) for c in (width, dim, dim, dim))))
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", ["tiny", "giant", "nano"])
def test_operations_are_those_of_the_counter(preset: str, stage: str, request_: CallShape) -> None:
    data: Any = preset_config(preset)
    with torch.device("meta"):
        network = MapAnythingNetwork(parse_config(data))
    expected = counted(network, stage, request_)
    assert stage_costs(network.config, request_)[stage].flops == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_fewer_keys_are_fewer_operations(request_: CallShape) -> None:
    with torch.device("meta"):
        config = parse_config(preset_config("tiny")).with_key_shares({0: 0.25, 4: 0.5})
        network = MapAnythingNetwork(config)
    expected = counted(network, "aggregator", request_)
    cost = stage_costs(config, request_)["aggregator"]
    assert cost.flops == pytest.approx(expected, rel=0.002)
    every = stage_costs(parse_config(preset_config("tiny")), request_)["aggregator"]
    assert (every.flops - cost.flops, every.attention - cost.attention) == pytest.approx(
        (every.attention - cost.attention,) * 2
    )
    assert (cost.flops < every.flops) == (request_.views > 1)


def test_many_views_cost_a_quarter_of_their_attention() -> None:
    config = parse_config(preset_config("giant"))
    few = config.with_key_shares(dict.fromkeys(range(0, config.aggregator.depth, 2), 0.25))
    dense, kept = (stage_costs(c, CallShape(500, 28, 37))["aggregator"] for c in (config, few))
    assert kept.attention / dense.attention == pytest.approx(0.255, abs=0.01)


@pytest.mark.slow
def test_one_call_reads_every_weight_once() -> None:
    with torch.device("meta"):
        network = MapAnythingNetwork(parse_config(preset_config("giant")))
    costs = stage_costs(network.config, CallShape(1, 1, 1, with_geometry=1), value_bytes=0)
    parameters = sum(p.numel() for p in network.parameters())
    assert total(costs).bytes / 4 == pytest.approx(parameters, rel=0.01)


def test_shares_of_attention_are_those_of_the_paper() -> None:
    """Global attention of the full network at 518 x 518: the figures that docs/contributing/kernels.md begins with."""
    config = parse_config(preset_config("giant"))
    shares = {}
    for views in (8, 32, 64):
        work = total(stage_costs(config, CallShape(views, 37, 37)))
        global_ = config.aggregator.depth / 2 * 4 * (views * 1370 + 1) ** 2 * config.aggregator.block.dim
        shares[views] = global_ / work.flops
    assert shares == pytest.approx({8: 0.16, 32: 0.43, 64: 0.60}, abs=0.01)


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
