"""Requests to engines on the stand-in GPU, and what makes its driver and library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.inference import Progress
from mapengine.runtime.inputs.prepared import prepare_views

from ....random_views import Views, assert_close, random_views
from .stand_in_driver import StandInDriver
from .stand_in_tensorrt import StandInTensorRt

MakeDriver = Callable[..., StandInDriver]
MakeLibrary = Callable[[str, StandInDriver], StandInTensorRt]
LIBRARIES = ("tensorrt", "tensorrt-rtx")


def forward(engine: Engine, views: Views, chunks: ChunkSizes | None = None, progress: Progress | None = None) -> Any:
    return engine.pipeline.forward(prepare_views(views), chunks, progress)


def given_views(kinds: str, batch: int = 1, width: int = 42, height: int = 28) -> Views:
    """One view per letter: image only (i), or with geometry (g); poses only if the first view has one."""
    views = random_views(len(kinds), "kdp" if kinds[0] == "g" else "kd", width, height, batch)
    return [
        view if kind == "g" else {key: view[key] for key in ("img", "data_norm_type")}
        for view, kind in zip(views, kinds, strict=True)
    ]


def call_from_threads(engine: Engine, host: Engine) -> None:
    """Several requests at once, each four times, give what ``host`` gives one after the other."""
    requests = [given_views(kinds, width=width) for kinds, width in (("gi", 42), ("gi", 42), ("iigg", 42), ("g", 70))]
    expected = [forward(host, views) for views in requests]
    start = threading.Barrier(len(requests))

    def call(index: int) -> None:
        start.wait()
        for _ in range(4):
            assert_close(forward(engine, requests[index]), expected[index])

    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(call, range(len(requests))))
