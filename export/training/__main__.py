"""``python -m mapengine.export.training CONFIG --out FOLDER``: train a network on rendered scenes, or go on."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from mapengine.runtime.system.machine import usable_processors

from .launch import Run, launch
from .trainer import Clock


def main() -> int:
    """Parse the command line and train; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mapengine.export.training", description=__doc__)
    parser.add_argument(
        "config", type=Path, help="JSON with the fields of TrainingConfig, such as export/training/nano.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; a checkpoint in it is continued")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, to be continued")
    parser.add_argument(
        "--anneal", action="store_true", help="with --minutes: end the run by then, its learning rate fallen to zero"
    )
    parser.add_argument(
        "--first-scenes", type=int, metavar="N", help="begin with N scenes and render the others beside the training"
    )
    parser.add_argument("--processes", type=int, default=1, help="on a CPU; the processor's threads are shared out")
    parser.add_argument("--threads", type=int, default=usable_processors(), help="processor threads of all processes")
    parser.add_argument("--start", metavar="MODEL", help="begin a new run with the weights of a model")
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the network in upstream's format at the end"
    )
    options = parser.parse_args()
    clock = Clock() if options.minutes is None else Clock(time.time() + 60 * options.minutes, options.anneal)
    if options.processes < 1 or (options.processes > 1 and options.device != "cpu"):
        parser.error("--processes is for --device cpu, and at least 1")
    if options.anneal and options.minutes is None:
        parser.error("--anneal needs --minutes")
    if options.first_scenes is not None and (options.first_scenes < 1 or options.processes > 1):
        parser.error("--first-scenes is at least 1, and for one process")
    threads_each = options.threads // options.processes
    run = Run(
        options.config,
        options.out,
        options.device,
        clock,
        options.first_scenes,
        options.export,
        options.start,
        threads_each,
    )
    return launch(options.processes, run)


if __name__ == "__main__":
    sys.exit(main())
