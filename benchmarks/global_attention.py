"""Time and memory of the aggregator with all keys and with fewer, at the size of a released network. Writes JSON.

    python benchmarks/global_attention.py --json benchmarks/results/global-attention-giant.json
    python benchmarks/global_attention.py --blocks 16 --views 8 16 32 64 --json build/aggregator.json

The network has the configuration of ``--model``, random weights, and ``--blocks`` blocks of its aggregator: 2 are one
pair of a layer over all views and one within each view, all of them the whole aggregator. The aggregator's time is that
of a pair times the number of pairs, and little besides, as every pair does the same work; memory is not multiplied,
because pairs run one after the other. Both variants take turns: in every round each is loaded in a process of its own
and called once. Operations are counted by formula, up to 500 views.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime.backends.registry import make_backend
from mapengine.runtime.system.children import Worker
from mapengine.runtime.system.machine import peak_bytes
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

COUNTED = (8, 16, 32, 64, 128, 256, 500)
ALL = "native"
Taken = dict[tuple[int, str], list[tuple[float, int | None]]]
"""Seconds and peak bytes of every call, by number of views and attention."""


class Export:
    """Writes the aggregator with a choice of keys into a folder."""

    def __init__(self, model: str, blocks: int, attention: str, folder: str) -> None:
        import torch

        from mapengine.export.attention.choice import AttentionChoice
        from mapengine.export.graphs.tracing import export_stages
        from mapengine.export.model.config_json import parse_config
        from mapengine.export.model.network import MapAnythingNetwork
        from mapengine.export.model.presets import preset_config

        full = parse_config(preset_config(model.removeprefix("preset:")))
        config = replace(
            full,
            aggregator=replace(
                full.aggregator, depth=blocks, taps=tuple(min(tap, blocks - 1) for tap in full.aggregator.taps)
            ),
            image_encoder=replace(full.image_encoder, depth=1),
        )
        config = config.with_key_shares(AttentionChoice.parse(attention).key_shares(config))
        torch.manual_seed(0)
        network = MapAnythingNetwork(config).eval().requires_grad_(False)
        run = network.info_sharing.forward

        def three_maps(*inputs: Any) -> Any:
            maps, scale = run(*inputs)
            return [maps[0]] * (3 - len(maps)) + maps, scale  # few blocks have fewer outputs than the head reads

        network.info_sharing.forward = three_maps  # type: ignore[method-assign]
        export_stages(network, Path(folder), stages=["aggregator"])
        self.facts: dict[str, Any] = {"embed_dim": config.image_encoder.block.dim, "extra": int(config.use_class_token)}

    def __call__(self) -> None:
        """Do nothing more."""


class Contender:
    """An exported aggregator on a backend, in its process."""

    def __init__(self, backend: str, folder: str, threads: int, shape: tuple[int, int, int, int]) -> None:
        library = make_backend(backend, [backend], threads)
        self._stage = library.load_stage("aggregator", Path(folder) / "aggregator.onnx")
        views, _, _, channels = shape
        rng = np.random.default_rng(0)
        self._inputs = {"features": rng.standard_normal(shape, np.float32)}
        self._inputs["extra_tokens"] = rng.standard_normal((views, 1, channels), np.float32)
        self.facts: dict[str, Any] = {}

    def __call__(self) -> tuple[float, int | None]:
        """Return the seconds of a call, and the most memory of the process until its end."""
        start = time.perf_counter()
        self._stage.run(self._inputs)
        return time.perf_counter() - start, peak_bytes()


def operations(model: str, attention: str, rows: int, columns: int) -> dict[str, list[float]]:
    """Return, per number of views, the operations of the whole aggregator with all keys and with the choice of
    ``attention``, in 10^12."""
    from mapengine.export.attention.choice import AttentionChoice
    from mapengine.export.diagnosis.costs import CallShape, stage_costs
    from mapengine.export.model.config_json import parse_config
    from mapengine.export.model.presets import preset_config

    config = parse_config(preset_config(model.removeprefix("preset:")))
    few = config.with_key_shares(AttentionChoice.parse(attention).key_shares(config))
    return {
        str(views): [
            round(stage_costs(c, CallShape(views, rows, columns))["aggregator"].flops / 1e12, 3) for c in (config, few)
        ]
        for views in COUNTED
    }


def summaries(taken: Taken, attention: str) -> list[dict[str, Any]]:
    """Return median, range and most memory per number of views that both variants were measured with."""
    results = []
    for views in dict.fromkeys(views for views, _ in taken):
        entry: dict[str, Any] = {"views": views, "rounds": len(taken[views, attention])}
        for name, variant in (("all", ALL), ("few", attention)):
            seconds = [found for found, _ in taken[views, variant]]
            peaks = [peak for _, peak in taken[views, variant] if peak is not None]
            entry[name] = {
                "median_s": round(statistics.median(seconds), 2),
                "min_s": round(min(seconds), 2),
                "max_s": round(max(seconds), 2),
                "peak_gb": round(max(peaks) / 1e9, 2) if peaks else None,
            }
        results.append(entry)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant", help="a preset")
    parser.add_argument("--blocks", type=int, default=2, help="of the aggregator; an even number")
    parser.add_argument("--attention", default="native:kv=0.5", help="the choice that is compared with all keys")
    parser.add_argument("--counted", help="the choice in the whole aggregator that operations are counted of")
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--json", type=Path, default=Path("build/global-attention.json"), help="where to write the record"
    )
    args = parser.parse_args()
    rows, columns = args.size[1] // 14, args.size[0] // 14
    taken: Taken = {}
    record = {
        "benchmark": "global_attention",
        "model": args.model,
        "blocks": args.blocks,
        "attention": args.attention,
        "size": "{}x{}".format(*args.size),
        "backend": args.backend,
        "threads": args.threads,
        **record_origin("mapengine", args.backend, "numpy"),
        "counted": args.counted or args.attention,
        "teraflops": operations(args.model, args.counted or args.attention, rows, columns),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        for attention in (ALL, args.attention):
            folders[attention] = str(Path(scratch) / str(len(folders)))
            Path(folders[attention]).mkdir()
            worker = Worker.start("export", partial(Export, args.model, args.blocks, attention, folders[attention]))
            facts = worker.facts
            worker.close()
        for _ in range(args.rounds):
            for views in args.views:
                shape = (views, rows, columns, facts["embed_dim"])
                for attention, folder in folders.items():
                    worker = Worker.start(attention, partial(Contender, args.backend, folder, args.threads, shape))
                    try:
                        taken.setdefault((views, attention), []).append(worker.call())
                    finally:
                        worker.close()
                    print(f"{views} views, {attention}: {taken[views, attention][-1][0]:.1f} s", flush=True)
                write_record(args.json, {**record, "results": summaries(taken, args.attention)})  # what there is so far


if __name__ == "__main__":
    main()
