"""Turn committed results into the tables of the documentation.

    python benchmarks/tables.py            # check: exit code 1 if a table is out of date
    python benchmarks/tables.py --write    # rewrite the tables

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` in a Markdown file; NAME is a file of
``benchmarks/results`` without its suffix; while there is none, the table says so. Figures reach the documentation by
no other way.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rendering import accuracy, gpu, keys, sequences, speed, triton_server
from rendering.page import Record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "export/weights/nano/README.md")
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- end -->)", re.S)
RENDER: dict[str, Callable[[Record], str]] = {
    function.__name__: function
    for function in (
        speed.engine, speed.cpu_options, speed.speed_work, speed.postprocess, speed.loading, speed.scenes, speed.build,
        speed.memory, speed.load, speed.batch, speed.ros, speed.saved, speed.profile, speed.soak, speed.viewer,
        accuracy.precision, accuracy.precision_range, accuracy.evaluation, accuracy.outliers, accuracy.quantizers,
        accuracy.training, accuracy.dense_head, sequences.sequences, triton_server.triton, triton_server.triton_soak,
        keys.kept_keys, keys.global_attention,
        gpu.attention, gpu.attention_accuracy, gpu.attention_tuning, gpu.attention_launch, gpu.gpu_test, gpu.chain,
    )
}  # fmt: skip
"""What makes a record a table, by the record's ``benchmark``."""


def rendered(text: str) -> str:
    """Return ``text`` with every marked table made anew from its results."""

    def filled(match: re.Match[str]) -> str:
        path = RESULTS / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}*Not measured yet.*\n{match[3]}"
        record = json.loads(path.read_text(encoding="utf-8"))
        return f"{match[1]}{RENDER[record['benchmark']](record)}\n{match[3]}"

    return MARKED.sub(filled, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, default=DOCUMENTS, help="by default README.md and docs/")
    parser.add_argument("--write", action="store_true", help="rewrite the tables")
    args = parser.parse_args()
    stale = []
    for document in args.documents:
        text = document.read_text(encoding="utf-8")
        new = rendered(text)
        if new != text:
            stale.append(document.name)
            if args.write:
                document.write_text(new, encoding="utf-8")
    if stale and not args.write:
        print(f"out of date: {', '.join(stale)}; run benchmarks/tables.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
