"""``python -m mapengine.kernels``: compile the kernels ahead of time, or list them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from .compile import build, chosen
from .errors import KernelError
from .tuning import ARCHITECTURES, HEAD_DIMS
from .variants import variants


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mapengine.kernels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name every kernel")
    make = commands.add_parser("compile", help="compile for GPUs; needs Triton, but neither PyTorch nor a GPU")
    make.add_argument("--out", type=Path, default=Path("build/kernels"), help="output folder (default: %(default)s)")
    make.add_argument(
        "--arch",
        type=int,
        nargs="+",
        default=list(ARCHITECTURES),
        metavar="CC",
        help=f"compute capabilities times ten (default: {' '.join(map(str, ARCHITECTURES))})",
    )
    make.add_argument("--head-dim", type=int, nargs="+", default=list(HEAD_DIMS), choices=HEAD_DIMS, metavar="D")
    make.add_argument("--kernel", nargs="+", default=[], metavar="NAME", help="only variants whose names begin so")
    make.add_argument("--jobs", type=int, default=_processors(), help="compilations at a time")
    make.add_argument("--force", action="store_true", help="compile also what has not changed")
    return parser


def _processors() -> int:
    """Return the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Exit code: 0, or 1 if a kernel could not be compiled or written."""
    args = _parser().parse_args(arguments)
    if args.command == "list":
        print("\n".join(variant.name for variant in variants()))
        return 0
    start = time.monotonic()
    try:
        jobs = chosen(args.arch, args.head_dim, args.kernel)
        report = build(
            args.out, jobs, workers=max(args.jobs, 1), force=args.force, progress=lambda line: print(line, flush=True)
        )
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was compiled is kept", file=sys.stderr)
        return 130
    print(
        f"{args.out}: {len(report.compiled)} compiled, {len(report.kept)} unchanged, "
        f"{len(report.not_applicable)} not applicable (FP8 before sm_89), {len(report.refused)} refused, "
        f"{time.monotonic() - start:.0f} s"
    )
    for reason in report.refused.values():
        print(f"refused: {reason}", file=sys.stderr)
    return 1 if report.refused else 0


if __name__ == "__main__":
    sys.exit(main())
