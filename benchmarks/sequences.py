"""Measure maps of rendered walks against their truth: ways to join, windows, loops, memory and time. Writes JSON.

    python benchmarks/sequences.py --bundle build/engine --json benchmarks/results/sequences-nano.json

The walks are held out of training. Their geometry is exact; the network gets images and intrinsics. Parts that are run
later (``--parts``) go into the record that is there. Which bars are met stands in the record.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.calibration.evaluation import HELD_OUT_SEED
from mapengine.calibration.evaluation.metrics import absolute_trajectory_error
from mapengine.calibration.evaluation.scoring import Values
from mapengine.calibration.evaluation.truth import full_view
from mapengine.calibration.scenes import RenderedWalk, WalkFrame, render_walk
from mapengine.calibration.scenes.walk import WALK_FRAMES
from mapengine.calibration.sequences import evaluate_sequence, mean_values
from mapengine.calibration.sequences.evaluate import rounded
from mapengine.calibration.sequences.trajectory import end_error
from mapengine.runtime import Engine, Mapper
from mapengine.runtime.backend_table import PACKAGES
from mapengine.runtime.mapping.keyframes import KEYFRAMES
from mapengine.runtime.mapping.loops.closing import AWAY, EVERY, LEAST_SCORE, Loop
from mapengine.runtime.mapping.loops.places import Places
from mapengine.runtime.mapping.windows import JOINS
from mapengine.runtime.system.children import WorkerPool
from mapengine.runtime.system.machine import peak_bytes
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

PARTS = ("joins", "limits", "keyframes", "loops", "places", "growth")
SLOW = 4
"""Times slower the camera of the walks is that keyframes are measured on."""
WALK = 300
"""Frames of a whole walk."""
GROWTH = (100, 1000)
HUNDRED, RECOGNISED = 100, 3
"""Frames after which memory is read; and after how many hundreds places were recognised and loops closed."""


def judge(name: str, walks: Iterable[Any], mapper: Callable[[], Mapper], window: int, **options: Any) -> dict[str, Any]:
    """Return the mean of every metric over sequences, and the standard error of the mean of the ATE."""
    found = []
    for walk in walks:
        found.append(evaluate_sequence(mapper(), walk, window=window, **options).values)
        print(f"{name}: ATE {found[-1]['ate']}, end {found[-1]['end_error']}", flush=True)
    return mean_of(found)


def mean_of(found: list[Values]) -> dict[str, Any]:
    """Return the mean of every metric over sequences, and the standard error of the mean of the ATE."""
    errors = [values["ate"] for values in found if values["ate"] is not None]
    spread = float(np.std(errors, ddof=1)) / math.sqrt(len(errors)) if len(errors) > 1 else None
    return {"sequences": len(found), "ate_standard_error": spread, "metrics": rounded(mean_values(found))}


def joins(engine: Engine, walks: list[RenderedWalk], window: int, overlap: int) -> dict[str, Any]:
    """Compare the ways to join windows."""
    return {
        f"windows, {join}": judge(
            join,
            walks,
            lambda join=join: Mapper(engine, join=join, window=window, overlap=overlap),  # type: ignore[misc]
            window,
        )
        for join in JOINS
    }


def limits(engine: Engine, walks: list[RenderedWalk], window: int, overlap: int) -> dict[str, Any]:
    """Map in one call, and in windows that get what is true of the frames that they share: what the network limits."""
    frames = len(walks[0])
    # Frames that two windows share, and the first ones, which their poses are relative to.
    shared = [n for n in range(frames) if n % (window - overlap) < overlap]
    results = {"one call": judge("one call", walks, lambda: Mapper(engine, window=frames, overlap=1), window)}
    name = "windows, true poses of shared frames"
    results[name] = judge(
        name,
        walks,
        lambda: Mapper(engine, join="poses", window=window, overlap=overlap),
        window,
        given=("intrinsics", "poses"),
        posed=shared,
    )
    return results


LOOPS = (
    ("without loops", False, ("intrinsics",)),
    ("with loops", True, ("intrinsics",)),
    ("without loops, true depth given", False, ("intrinsics", "depth")),
    ("with loops, true depth given", True, ("intrinsics", "depth")),
)
"""How whole closed walks are mapped; with the true depth, which shows what the network limits."""
SEEN_AGAIN, ELSEWHERE = 0.3, 0.05
"""Share of the pixels of both frames that the other one sees, from which they show one place, and below which not."""


def shared(one: WalkFrame, other: WalkFrame, step: int = 8) -> float:
    """Return the share of the pixels with depth of each of two frames that the other one sees, the lower one."""
    return min(_seen(one, other, step), _seen(other, one, step))


def _seen(one: WalkFrame, other: WalkFrame, step: int) -> float:
    """Return the share of the pixels of ``other`` that ``one`` sees at the same depth."""
    height, width = one.depth_z.shape
    rows, columns = (grid.ravel() for grid in np.mgrid[step // 2 : height : step, step // 2 : width : step])
    depth = other.depth_z[rows, columns].astype(np.float64)
    rows, columns, depth = rows[depth > 0], columns[depth > 0], depth[depth > 0]
    camera = one.intrinsics.astype(np.float64)
    points = np.stack([columns, rows, np.ones(len(rows))]) * depth
    into = np.linalg.inv(one.pose.astype(np.float64)) @ other.pose.astype(np.float64)
    there = into[:3, :3] @ np.linalg.inv(camera) @ points + into[:3, 3:]
    x, y, z = camera @ there
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = np.rint(x / z), np.rint(y / z)
    inside = (z > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
    found = one.depth_z[v[inside].astype(np.intp), u[inside].astype(np.intp)]
    return float(np.count_nonzero(np.abs(found - z[inside]) < 0.05 * z[inside]) / max(len(depth), 1))


def map_closed(
    engine: Engine, walk: RenderedWalk, way: tuple[str, bool, Sequence[str]], window: int, overlap: int
) -> dict[str, Any]:
    """Map a whole closed walk in one of :data:`LOOPS`; returns metrics and loops.

    Beside the metrics of the largest submap there are two of all frames, wherever breaks are: ``closing`` is how far
    the last camera is from where it should be, seen from the first one, and ``ate_of_all`` the ATE.
    """
    name, on, given = way
    mapper = Mapper(engine, window=window, overlap=overlap, loops=on)
    values = evaluate_sequence(mapper, walk, window=window, given=given).values
    poses, true_poses = mapper.poses, walk.poses.astype(np.float64)
    seen = np.isfinite(poses).all(axis=(1, 2))
    whole = {
        "closing": end_error(poses[seen], true_poses[seen]),
        "ate_of_all": absolute_trajectory_error(poses[seen, :3, 3], true_poses[seen, :3, 3], rigid=True),
    }
    loops = [judged_loop(loop, walk) for loop in mapper.loops]
    print(walk.seed, name, whole, loops, flush=True)
    return {"metrics": rounded({**values, **whole}), "submaps": mapper.summary["submaps"], "loops": loops}


def judged_loop(loop: Loop, walk: RenderedWalk) -> dict[str, Any]:
    """Return how far a loop that passed its check is from the truth."""
    one, other = walk[loop.first], walk[loop.second]
    true = np.linalg.inv(one.pose.astype(np.float64)) @ other.pose.astype(np.float64)
    relative = loop.check.relative
    cosine = (np.trace(relative.rotation.T @ true[:3, :3]) - 1) / 2
    return {
        "first": loop.first,
        "second": loop.second,
        "shared": round(shared(one, other), 3),
        "believed": bool(loop.believed),
        "degrees": round(math.degrees(math.acos(min(max(cosine, -1.0), 1.0))), 2),
        "metres": round(float(np.linalg.norm(relative.translation - true[:3, 3])), 3),
    }


def closed_means(closed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the means over the closed walks that were mapped in each way so far, and their loops counted."""
    results = {}
    for name, _, _ in LOOPS:
        found = [walk[name] for walk in closed.values() if name in walk]
        if not found:
            continue
        passed = [loop for entry in found for loop in entry["loops"]]
        right = [loop for loop in passed if loop["shared"] >= ELSEWHERE]
        results[name] = {
            **mean_of([entry["metrics"] for entry in found]),
            "loops": len(passed),
            "believed": sum(loop["believed"] for loop in passed),
            "wrong": len(passed) - len(right),
            "closed": sum(any(loop["believed"] for loop in entry["loops"]) for entry in found),
            "loop_degrees": float(np.median([loop["degrees"] for loop in right])) if right else None,
            "loop_metres": float(np.median([loop["metres"] for loop in right])) if right else None,
        }
    return results


def counted(walks: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return the sums of what was counted on walks."""
    return {key: sum(walk[key] for walk in walks.values()) for key in next(iter(walks.values()))}


def recognise(engine: Engine, walk: RenderedWalk) -> dict[str, int]:
    """Look for the places of a walk as the mapper does; returns how many frames see one again, and are recognised."""
    places, kept = Places(), {}
    counts = dict.fromkeys(("frames", "seen_again", "first_right", "any_right", "candidates", "wrong"), 0)
    for number in range(0, len(walk), EVERY):
        frame = kept[number] = walk[number]
        view = full_view(frame.image, frame.intrinsics, frame.depth_z, frame.pose, engine.data_norm_type)
        (encoded,) = engine.encode([{key: view[key] for key in ("img", "data_norm_type")}])
        places.add(number, encoded.features.patches)
        found = [one for one in places.search(away=AWAY, count=2) if one.score >= LEAST_SCORE]
        overlaps = [shared(frame, kept[one.number]) for one in found]
        again = any(shared(frame, kept[other]) >= SEEN_AGAIN for other in kept if other <= number - AWAY)
        counts["frames"] += 1
        counts["candidates"] += len(found)
        counts["wrong"] += sum(overlap < ELSEWHERE for overlap in overlaps)
        if again:
            counts["seen_again"] += 1
            counts["first_right"] += bool(overlaps) and overlaps[0] >= SEEN_AGAIN
            counts["any_right"] += any(overlap >= SEEN_AGAIN for overlap in overlaps)
    print(f"{walk.seed}: places {counts}", flush=True)
    return counts


class TimedMapper(Mapper):
    """Knows the processor time that its frames took."""

    seconds = 0.0

    def add(self, view: Any, name: str = "") -> Any:
        began = time.process_time()
        done = super().add(view, name)
        self.seconds += time.process_time() - began
        return done

    def finish(self) -> Any:
        began = time.process_time()
        done = super().finish()
        self.seconds += time.process_time() - began
        return done


def keyframes(engine: Engine, walks: list[RenderedWalk], window: int, overlap: int) -> dict[str, Any]:
    """Compare the choices of keyframes, where the camera is slow."""
    found: dict[str, list[Values]] = {name: [] for name in KEYFRAMES}
    for walk in walks:
        for name, done in found.items():
            mapper = TimedMapper(engine, window=window, overlap=overlap, loops=False, keyframes=name)
            values = evaluate_sequence(mapper, walk, window=window).values
            values |= {"keyframes": float(mapper.keyframes.mean()), "cpu_seconds": mapper.seconds / len(walk)}
            print(f"{walk.seed}, keyframes {name}: {rounded(values)}", flush=True)
            done.append(values)
    return {name: mean_of(done) for name, done in found.items()}


def grow(
    bundle: Path, frames: int, window: int, overlap: int, seed: int, size: tuple[int, int], closes: bool
) -> dict[str, Any]:
    """Map a walk in this process, without keeping anything; returns peak memory and time per frame."""
    engine = Engine.load(bundle, threads=1)
    mapper = Mapper(engine, window=window, overlap=overlap, loops=closes)
    walk = render_walk(seed, frames, *size)
    spent, peaks = [], []
    for number, frame in enumerate(walk, start=1):
        view = full_view(frame.image, frame.intrinsics, frame.depth_z, frame.pose, engine.data_norm_type)
        began = time.process_time()
        mapper.add({key: view[key] for key in ("img", "data_norm_type", "intrinsics")})
        spent.append(time.process_time() - began)
        if number % HUNDRED == 0:
            peaks.append(peak_bytes())
    mapper.finish()
    peak = peak_bytes()
    tenth = frames // 10
    return {
        "peak_mb": None if peak is None else peak / 1e6,
        "cpu_seconds_per_frame": float(np.mean(spent)),
        "first_tenth": float(np.mean(spent[:tenth])),
        "last_tenth": float(np.mean(spent[-tenth:])),
        "hundreds": [
            {"peak_mb": None if most is None else most / 1e6, "cpu_seconds_per_frame": float(np.mean(part))}
            for most, part in zip(peaks, np.split(np.array(spent), len(peaks)), strict=True)
        ],
        "loops": len(mapper.loops),
    }


def bars(results: dict[str, Any], window: int) -> list[dict[str, Any]]:
    """Return what was asked for, what was found, and whether that is enough, as far as it was measured."""
    found = []

    def bar(name: str, value: float, most: float) -> None:
        found.append({"bar": name, "value": value, "most": most, "met": value <= most})

    def ate(name: str) -> float:
        return float(results["windows"][name]["metrics"]["ate"])

    if {"windows, align", "one call"} <= set(results.get("windows", ())):
        informed = min(ate("windows, poses"), ate("windows, poses+depth"))
        bar("ATE of the better of poses and poses+depth, over that of align", informed / ate("windows, align"), 0.7)
        best = min(ate(f"windows, {join}") for join in JOINS)
        bar(f"ATE of windows of {window} by the best join, over that of one call", best / ate("one call"), 1.3)
    for told in ("", ", true depth given"):
        if f"with loops{told}" in results.get("loops", ()):
            without, with_ = (
                results["loops"][f"{how} loops{told}"]["metrics"]["closing"] for how in ("without", "with")
            )
            bar(f"end-to-start error of a closed walk with loops, over that without{told}", with_ / without, 1 / 3)
    for told in ("", ", with loops") if "growth" in results else ():
        few, many = (results["growth"][f"{frames}{told}"] for frames in GROWTH)
        bar(f"peak memory at 1000 frames over that at 100{told}", many["peak_mb"] / few["peak_mb"], 1.05)
        bar(f"processor time per frame at 1000 frames over that at 100{told}",
            many["cpu_seconds_per_frame"] / few["cpu_seconds_per_frame"], 1.05)  # fmt: skip
    hundreds = results.get("growth", {}).get(f"{GROWTH[1]}, with loops", {}).get("hundreds", ())
    if len(hundreds) > RECOGNISED:
        peaks, times = ([part[key] for part in hundreds] for key in ("peak_mb", "cpu_seconds_per_frame"))
        bar("the same walk with loops: peak memory at 1000 frames over that at 300",
            peaks[-1] / peaks[RECOGNISED - 1], 1.05)  # fmt: skip
        bar("the same walk with loops: processor time per frame of 700 to 1000 over 200 to 500",
            sum(times[-3:]) / sum(times[RECOGNISED - 1 : RECOGNISED + 2]), 1.05)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("build/engine"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sequences", type=int, default=20)
    parser.add_argument(
        "--closed",
        type=int,
        default=10,
        help="whole closed walks that loops are measured on; those in the record are kept",
    )
    parser.add_argument("--slow", type=int, default=6, help="walks of a slow camera that keyframes are measured on")
    parser.add_argument("--frames", type=int, default=32, help="first frames of each walk that windows are compared on")
    parser.add_argument("--walk", type=int, default=WALK, help="frames of a whole walk")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--overlap", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(140, 112))
    parser.add_argument("--json", type=Path, default=Path("build/sequences.json"), help="where to write the record")
    args = parser.parse_args()
    shape, seed = (args.window, args.overlap), HELD_OUT_SEED
    engine = Engine.load(args.bundle, threads=1)
    record = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {"results": {}, "counts": {}}
    results, counts = record["results"], record["counts"]
    manifest = engine.manifest

    def write() -> None:
        """Write what was measured so far: who ends this loses one walk."""
        written = {
            "benchmark": "sequences",
            "model": manifest.model.id,
            "precision": manifest.precision,
            "where": engine.where,
            **record_origin(*PACKAGES, "scipy"),
            "size": "{}x{}".format(*args.size),
            "seed": seed,
            "window": args.window,
            "overlap": args.overlap,
            "counts": counts,
            "results": results,
            "bars": bars(results, args.window),
        }
        write_record(args.json, written)

    parts = [render_walk(seed + n, args.walk, *args.size)[: args.frames] for n in range(args.sequences)]
    for part, measure in (("joins", joins), ("limits", limits)):
        if part in args.parts:
            results.setdefault("windows", {}).update(measure(engine, parts, *shape))
            counts |= {"sequences": args.sequences, "frames": args.frames}
    if "keyframes" in args.parts:
        # A walk has so many frames at most.
        whole = min(SLOW * args.walk, max(WALK_FRAMES)) // SLOW * SLOW
        slow = [render_walk(seed + n, whole, *args.size, slow=SLOW)[: SLOW * args.frames] for n in range(args.slow)]
        results["keyframes"] = keyframes(engine, slow, *shape)
        counts |= {"slow": args.slow, "slow_frames": len(slow[0])}
        write()
    numbers = range(seed, seed + args.closed)
    if "places" in args.parts:
        walks = results.setdefault("places_of_walks", {})
        for number in numbers:
            if str(number) not in walks:
                walks[str(number)] = recognise(engine, render_walk(number, args.walk, *args.size))
                results["places"] = counted(walks)
                counts |= {"places": len(walks), "walk": args.walk}
                write()
    if "loops" in args.parts:
        closed = results.setdefault("closed_walks", {})
        # Two ways that are compared, of all walks, before the next two.
        for ways, number in product((LOOPS[:2], LOOPS[2:]), numbers):
            for way in ways:
                mapped = closed.setdefault(str(number), {})
                if way[0] not in mapped:
                    mapped[way[0]] = map_closed(engine, render_walk(number, args.walk, *args.size), way, *shape)
                    results["loops"] = closed_means(closed)
                    counts |= {"closed": len(closed), "walk": args.walk}
            write()
    if "growth" in args.parts:
        results["growth"] = {}
        for frames in GROWTH:
            for name, closes in ((f"{frames}", False), (f"{frames}, with loops", True)):
                with WorkerPool(1) as process:
                    done = process.submit(grow, args.bundle, frames, *shape, seed, tuple(args.size), closes)
                    results["growth"][name] = done.result()
                print(name, results["growth"][name], flush=True)
    write()


if __name__ == "__main__":
    main()
