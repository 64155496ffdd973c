"""Use engines for ten minutes in every way at once, and say what differs and what grows.

    python benchmarks/soak.py --json benchmarks/results/soak.json

Threads share an engine per backend: mixed views, streams that are abandoned, callbacks that raise, calls that are
refused, encoded views, sessions, and engines that are loaded and let go. Every result is compared to the bit with that
of the same call in a single thread before. Between rounds all threads end, and memory, descriptors and threads are
counted. The exit code is 1 where a result differs, a call fails or hangs, or something grows beyond its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import Engine, InputError, Session, preprocess_inputs
from mapengine.runtime.system.children import child_command, child_environment
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

BACKENDS = ("onnxruntime", "openvino")
ROUNDS = 10
SECONDS_TO_END = 120
"""After which a thread that does not come back hangs."""
BOUNDS = {"resident_bytes": 32 * 2**20, "descriptors": 0, "threads": 0, "device_bytes": 32 * 2**20}
"""Growth from the end of the first round to that of the last that is still none: allocators keep some memory."""
SIZES = ((84, 56), (56, 84), (70, 42))
MIXES = (("",), ("", "", ""), ("k", "k"), ("p", "p"), ("kd", "kd"), ("kdp", "kdp", "kdp"), ("p", "kd", "", "kp"))
"""What is known of each view: k intrinsics, d depth, p pose."""

Predictions = Sequence[Mapping[str, Any]]


class Different(Exception):
    """A result differs from that of a single thread."""


class Unwanted(Exception):
    """What the callbacks raise."""


@dataclass
class State:
    """What the process holds, between rounds; ``device_bytes`` is None without a GPU."""

    resident_bytes: int
    descriptors: int
    threads: int
    device_bytes: int | None


@dataclass
class Case:
    """Views of one call, and what a single thread predicted for them."""

    name: str
    views: list[dict[str, Any]]
    wanted: Predictions = field(default_factory=list)

    def check(self, found: Predictions, first: int = 0) -> None:
        """Compare predictions of the views from ``first`` on, to the bit."""
        for index, got in enumerate(found, first):
            want = self.wanted[index]
            if got.keys() != want.keys():
                raise Different(f"{self.name}: view {index} has other keys")
            for key, value in want.items():
                if value.dtype != got[key].dtype or not np.array_equal(value, got[key]):
                    raise Different(f"{self.name}: {key} of view {index} differs")


def make_cases() -> list[Case]:
    """Return a case per mix and size."""
    cases = []
    for width, height in SIZES:
        for mix in MIXES:
            views = []
            for sample, letters in zip(sample_views(len(mix), width, height), mix, strict=True):
                raw: dict[str, Any] = {"img": sample.image}
                raw |= {"intrinsics": sample.intrinsics} if "k" in letters else {}
                raw |= {"depth_z": sample.depth_z} if "d" in letters else {}
                raw |= {"camera_poses": sample.pose} if "p" in letters else {}
                views.append(raw)
            prepared = preprocess_inputs(views, resize_mode="fixed_size", size=(width, height))
            cases.append(Case(f"{width}x{height} {'+'.join(letters or 'image' for letters in mix)}", prepared))
    return cases


class Soak:
    """One engine, its cases, and the ways in which they are used; threads share it."""

    def __init__(self, bundle: Path, backend: str) -> None:
        self.backend = backend
        self.engine = Engine.load(bundle, backend, threads=1)
        self.cases = make_cases()
        for case in self.cases:
            case.wanted = self.engine.infer(case.views)
        self.done: Counter[str] = Counter()
        self._bundle = bundle
        self._counting = threading.Lock()
        self.ways: dict[str, Callable[[random.Random, Case], None]] = {
            "calls": self._call,
            "streams to the end": self._stream,
            "abandoned streams": self._abandon,
            "raising callbacks": self._raise,
            "refused calls": self._refuse,
            "encoded views": self._encode,
            "sessions": self._session,
            "engines loaded and let go": self._load,
        }

    def use(self, draws: random.Random) -> None:
        """Use the engine once, in any way."""
        # Loading takes as long as many calls.
        way = draws.choices(list(self.ways), [8, 4, 4, 4, 4, 4, 4, 1])[0]
        case = draws.choice(self.cases)
        try:
            self.ways[way](draws, case)
        except Exception as error:
            raise Different(f"{self.backend}, {way}, {case.name}: {type(error).__name__}: {error}") from error
        with self._counting:
            self.done[way] += 1

    def _call(self, draws: random.Random, case: Case) -> None:
        case.check(self.engine.infer(case.views, minibatch_size=draws.choice((None, 1))))

    def _stream(self, draws: random.Random, case: Case) -> None:
        case.check(list(self.engine.infer_stream(case.views)))

    def _abandon(self, draws: random.Random, case: Case) -> None:
        stream = self.engine.infer_stream(case.views)
        taken = draws.randrange(len(case.views) + 1)
        case.check([next(stream) for _ in range(taken)])
        if draws.random() < 0.5:
            stream.close()  # type: ignore[attr-defined]

    def _raise(self, draws: random.Random, case: Case) -> None:
        left = draws.randrange(3)

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Unwanted(stage)

        with contextlib.suppress(Unwanted):
            self.engine.infer(case.views, progress=progress)
            raise Different("the callback's exception was lost")
        case.check(self.engine.infer(case.views))

    def _refuse(self, draws: random.Random, case: Case) -> None:
        image = case.views[0]["img"].copy()
        image[..., draws.randrange(image.shape[-1])] = np.nan
        bad = draws.choice(({**case.views[0], "pose": 1}, {**case.views[0], "img": image}, {}))
        with contextlib.suppress(InputError):
            self.engine.infer([*case.views, bad])
            raise Different("a view that has no meaning was taken")

    def _encode(self, draws: random.Random, case: Case) -> None:
        encoded = self.engine.encode(case.views)
        for _ in range(draws.randrange(1, 3)):
            case.check(self.engine.infer(encoded))

    def _session(self, draws: random.Random, case: Case) -> None:
        session = Session(self.engine, window=len(case.views))
        for view in (*case.views[: draws.randrange(len(case.views))], *case.views):  # the first ones leave again
            session.add(view)
        case.check(session.infer())

    def _load(self, draws: random.Random, case: Case) -> None:
        engine = Engine.load(self._bundle, self.backend, threads=1, verify=draws.random() < 0.5)
        case.check(engine.infer(case.views))


def soak(soaks: Sequence[Soak], workers: int, end: float, seed: str) -> str | None:
    """Let threads use the engines until ``end`` of the monotonic clock; returns the first difference."""
    first: list[str] = []

    def work(index: int) -> None:
        draws = random.Random(f"{seed} {index}")
        try:
            while time.monotonic() < end and not first:
                draws.choice(soaks).use(draws)
        except Different as error:
            first.append(f"{error} (round {seed}, thread {index})")

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(workers)]
    for thread in threads:
        thread.start()
    for index, thread in enumerate(threads):
        thread.join(max(0.0, end - time.monotonic()) + SECONDS_TO_END)
        if thread.is_alive():
            first.append(f"thread {index} of round {seed} hangs")
    return first[0] if first else None


def measure(soaks: Sequence[Soak]) -> State:
    """Count what the process holds when nothing runs."""
    gc.collect()
    process = psutil.Process()
    device = [used for one in soaks if (used := one.engine.device_bytes()) is not None]
    descriptors = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return State(process.memory_info().rss, descriptors, process.num_threads(), max(device, default=None))


def growth(first: State, last: State) -> dict[str, int]:
    """Return how much more the process holds."""
    before, after = asdict(first), asdict(last)
    return {name: after[name] - before[name] for name in BOUNDS if before[name] is not None}


def build(folder: Path) -> Path:
    """Build ``preset:tiny`` in a process of its own, whose memory is not measured."""
    command = child_command("mapengine", "build", "preset:tiny", folder)
    subprocess.run(command, check=True, env=child_environment(), stdout=subprocess.DEVNULL)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long, after the start")
    parser.add_argument("--threads", type=int, default=4, help="threads that call the engines at the same time")
    parser.add_argument("--bundle", type=Path, help="a bundle of any size; by default preset:tiny is built")
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"), help="where to write the record")
    args = parser.parse_args()
    # Before it begins: ten minutes later the checkout may be another.
    origin = record_origin("mapengine", *(name for name in BACKENDS if name in args.backends), "numpy")
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or build(Path(folder) / "bundle")
        soaks = [Soak(bundle, backend) for backend in args.backends]
        states: list[State] = []
        difference = None
        start = time.monotonic()
        for index in range(ROUNDS):
            end = start + args.seconds * (index + 1) / ROUNDS
            difference = soak(soaks, args.threads, end, str(index))
            states.append(measure(soaks))
            calls = sum(sum(one.done.values()) for one in soaks)
            now = states[-1]
            print(
                f"round {index + 1} of {ROUNDS}: {calls} calls, {now.resident_bytes / 1e6:.0f} MB, "
                f"{now.descriptors} descriptors, {now.threads} threads",
                flush=True,
            )
            if difference is not None:
                break
    grown = growth(states[0], states[-1])
    too_much = [name for name, more in grown.items() if more > BOUNDS[name]]
    record = {
        "benchmark": "soak",
        "seconds": args.seconds,
        "callers": args.threads,
        "model": soaks[0].engine.manifest.model.id,
        **origin,
        "results": {one.backend: {way: one.done[way] for way in one.ways} for one in soaks},
        "first_difference": difference,
        "first_round": asdict(states[0]),
        "last_round": asdict(states[-1]),
        "growth": grown,
        "bounds": {name: BOUNDS[name] for name in grown},
    }
    write_record(args.json, record)
    print(f"first difference from a single thread: {difference or 'none'}")
    for name, more in grown.items():
        print(f"growth of {name.replace('_', ' ')}: {more} (at most {BOUNDS[name]})")
    return 1 if difference is not None or too_much else 0


if __name__ == "__main__":
    sys.exit(main())
