"""The options of a call: upstream's names and defaults, refused before the network runs where they are wrong."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from mapengine.export.model.reference import MapAnything
from mapengine.runtime import Engine, InferOptions, InputError, Session
from mapengine.runtime.geometry import Array
from mapengine.runtime.inference import MultiViewInference
from mapengine.runtime.inputs.prepared import PreparedViews
from mapengine.runtime.options import LIMITS, Progress, option_help

from ..refusals import refused, view

UPSTREAM: dict[str, Any] = {
    "memory_efficient_inference": True,
    "minibatch_size": None,
    "use_amp": True,
    "amp_dtype": "bf16",
    "apply_mask": True,
    "mask_edges": True,
    "edge_normal_threshold": 5.0,
    "edge_depth_threshold": 0.03,
    "apply_confidence_mask": False,
    "confidence_percentile": 10,
    "ignore_calibration_inputs": False,
    "ignore_depth_inputs": False,
    "ignore_pose_inputs": False,
    "ignore_depth_scale_inputs": False,
    "ignore_pose_scale_inputs": False,
    "use_multiview_confidence": False,
    "multiview_conf_depth_abs_thresh": 0.02,
    "multiview_conf_depth_rel_thresh": 0.02,
}


class Recorder(MultiViewInference):
    """Remembers the options of the calls that reach the network, which then fails."""

    data_norm_type = "dinov2"

    def __init__(self) -> None:
        self.calls: list[InferOptions] = []

    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> list[dict[str, Array]]:
        self.calls.append(options)
        raise InterruptedError


@pytest.mark.parametrize("infer", [Engine.infer, MapAnything.infer], ids=["engine", "reference"])
def test_names_order_and_defaults_are_those_of_mapanything(infer: Callable[..., Any]) -> None:
    parameters = list(inspect.signature(infer).parameters.values())[1:]
    in_order = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert {p.name: p.default for p in in_order} == {"views": inspect.Parameter.empty, **UPSTREAM}
    assert [p.name for p in in_order] == ["views", *UPSTREAM]
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == ["outputs", "on_device", "progress"]
    assert len(in_order) + 3 == len(parameters)


@pytest.mark.parametrize("method", [Engine.infer_stream, Engine.reconstruct, Session.infer, Session.infer_stream])
def test_the_other_calls_show_the_options_by_name(method: Callable[..., Any]) -> None:
    parameters = inspect.signature(method).parameters
    assert [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY][-len(UPSTREAM) :] == list(UPSTREAM)
    assert all(parameters[name].default == default for name, default in UPSTREAM.items())


def test_positions_and_names_reach_the_network() -> None:
    network = Recorder()
    for call in (
        lambda: network.infer([view()], True, 2, mask_edges=False),
        lambda: network.infer([view()], minibatch_size=2, mask_edges=False),
        lambda: next(network.infer_stream([view()], minibatch_size=2, mask_edges=False)),
    ):
        with pytest.raises(InterruptedError):
            call()
    assert network.calls == [InferOptions(minibatch_size=2, mask_edges=False)] * 3
    with pytest.raises(TypeError):
        network.infer([view()], *UPSTREAM.values(), None)
    with pytest.raises(TypeError):
        network.infer([view()], True, memory_efficient_inference=True)


FLAGS = [name for name, default in UPSTREAM.items() if isinstance(default, bool)]
OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "edge_normal_threshold": (-5, 180.5, math.inf),
    "edge_depth_threshold": (-0.1, math.inf),
    "confidence_percentile": (-1, 101, np.float32(100.5)),
    "multiview_conf_depth_abs_thresh": (-1, math.inf),
    "multiview_conf_depth_rel_thresh": (-1, np.inf),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in FLAGS for value in ("no", 1, None, np.ones(2, bool))),
        *((name, value) for name in LIMITS for value in ("10", "wide", None, True, math.nan, 1j, np.ones(2))),
        *((name, value) for name, values in OUT_OF_RANGE.items() for value in values),
        *(("minibatch_size", value) for value in (0, -1, 1.5, True, "2", math.nan)),
        *(("amp_dtype", value) for value in ("int8", None, 16, ["bf16"])),
    ],
)
def test_wrong_values_are_refused_before_the_network_runs(name: str, value: Any) -> None:
    network = Recorder()
    refused(InputError, f"{name} is ", lambda: network.infer([view()], **{name: value}))
    refused(InputError, f"{name} is ", lambda: network.infer_stream([view()], **{name: value}))
    refused(InputError, f"{name} is ", lambda: InferOptions(**{name: value}))
    assert network.calls == []


def test_unknown_options_name_the_nearest() -> None:
    network = Recorder()
    for call in (network.infer, network.infer_stream):
        refused(InputError, "no option 'mask_edge'|nearest is 'mask_edges'", lambda c=call: c([view()], mask_edge=True))
        refused(InputError, "no option 'zzz'|InferOptions", lambda c=call: c([view()], zzz=True))
    assert network.calls == []


def test_values_of_numpy_become_plain_ones() -> None:
    options = InferOptions(
        minibatch_size=np.int64(2),  # type: ignore[arg-type]
        mask_edges=np.bool_(False),  # type: ignore[arg-type]
        confidence_percentile=np.float32(12.5),  # type: ignore[arg-type]
        edge_normal_threshold=np.int8(3),  # type: ignore[arg-type]
    )
    kinds = {o.name: type(getattr(options, o.name)) for o in fields(options)}
    assert (options.minibatch_size, options.mask_edges, options.confidence_percentile) == (2, False, 12.5)
    assert set(kinds.values()) == {bool, int, float, str}
    with pytest.raises(FrozenInstanceError):
        options.use_amp = False  # type: ignore[misc]


def test_what_the_options_mean_for_the_network() -> None:
    assert InferOptions().reduced_precision == "bf16"
    assert InferOptions(use_amp=False).reduced_precision is None
    assert InferOptions().head_chunk(7) is None
    assert InferOptions(minibatch_size=2).head_chunk(7) == 2
    assert InferOptions(minibatch_size=2, memory_efficient_inference=False).head_chunk(7) == 7


def test_every_option_is_described_in_one_line() -> None:
    texts = {name: option_help(name) for name in UPSTREAM}
    assert all(len(text) > 10 and text.endswith(".") and "\n" not in text for text in texts.values())
    assert len(set(texts.values())) == len(UPSTREAM)
    assert texts["apply_mask"] == "Add ``mask``, and set points and depth outside it to 0."
