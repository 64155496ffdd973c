"""Starts the processes of a training run and lets them find each other."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from mapengine.runtime.errors import MapEngineError
from mapengine.runtime.system.children import WorkerPool

from .config import TrainingConfig
from .trainer import Clock, Trainer


@dataclass(frozen=True)
class Run:
    """What every process of a run is told; see ``python -m mapengine.export.training --help``."""

    config: Path
    out: Path
    device: str
    clock: Clock
    first_scenes: int | None
    export: Path | None
    start: str | None
    threads: int
    """Processor threads of each process."""


def launch(processes: int, run: Run) -> int:
    """Train with so many processes, this one included; returns the exit code."""
    if processes == 1:
        return _train(0, 1, run, None)
    with tempfile.TemporaryDirectory() as folder, WorkerPool(processes - 1) as pool:
        meeting = f"file://{folder}/meeting"
        for rank in range(1, processes):
            pool.submit(_train, rank, processes, run, meeting)
        return _train(0, processes, run, meeting)


def _train(rank: int, processes: int, run: Run, meeting: str | None) -> int:
    torch.set_num_threads(max(1, run.threads))
    report = (lambda text: print(text, flush=True)) if rank == 0 else (lambda text: None)
    try:
        if meeting is not None:
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
        trainer = Trainer(TrainingConfig.read(run.config), run.out, run.device, report, run.start)
        finished = trainer.run(run.clock, run.first_scenes)
        if rank == 0 and finished and run.export:
            report(f"wrote {trainer.export(run.export)}")
    except MapEngineError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if rank == 0:
            print("stopped; the run goes on from its last checkpoint", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
