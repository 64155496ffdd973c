"""Measure how many views a second are rendered with one process per core, as training and calibration do.

python benchmarks/scenes.py --json benchmarks/results/scenes.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from mapengine.calibration.scenes import MAX_VIEWS, render_scene
from mapengine.runtime.system.children import WorkerPool
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record


def _render(seeds: range, width: int, height: int) -> dict[str, float]:
    """Return the seconds per kind of scene."""
    seconds: dict[str, float] = {}
    for seed in seeds:
        start = time.perf_counter()
        scene = render_scene(seed, MAX_VIEWS, width, height)
        seconds[scene.kind] = seconds.get(scene.kind, 0.0) + time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--scenes", type=int, default=48, help="per process and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/scenes.json"), help="where to write the record")
    options = parser.parse_args()
    width, height = options.size
    processes = usable_processors()
    rates = []
    with WorkerPool(processes) as pool:

        def render(parts: list[range]) -> None:
            for job in [pool.submit(_render, seeds, width, height) for seeds in parts]:
                job.result()

        render([range(1)] * processes)  # warms up
        for round_ in range(options.rounds):
            starts = [(round_ * processes + worker) * options.scenes for worker in range(processes)]
            parts = [range(start, start + options.scenes) for start in starts]
            begin = time.perf_counter()
            render(parts)
            rates.append(MAX_VIEWS * options.scenes * processes / (time.perf_counter() - begin))
            print(f"{rates[-1]:.1f} views/s", flush=True)
    record = {
        "benchmark": "scenes",
        "size": options.size,
        "processes": processes,
        "views_per_round": MAX_VIEWS * options.scenes * processes,
        "views_per_second": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        **record_origin("mapengine", "numpy"),
    }
    write_record(options.json, record)


if __name__ == "__main__":
    main()
