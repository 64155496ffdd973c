"""Store the speeds of a record of `benchmarks/attention.py` made on a GPU, for `--attention auto`.

    python benchmarks/attention_speeds.py benchmarks/results/attention-h200.json

writes `kernels/speeds.json`, where other architectures keep what they have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mapengine.kernels.speeds import SPEEDS
from mapengine.runtime.writing.files import write_text

NATIVE = ("torch flash", "torch cuDNN", "torch efficient")
OURS = {"dense": "flash", "int8": "int8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    args = parser.parse_args()
    record = json.loads(args.record.read_text(encoding="utf-8"))
    gpu = record["machine"]["gpu"]
    if gpu is None or not record.get("speed"):
        parser.error(f"{args.record} was not measured on a GPU")
    lengths = {}
    for views, rows in record["speed"].items():
        times = {"native": min(rows[name]["median_ms"] for name in NATIVE if name in rows)}
        times |= {ours: rows[name]["median_ms"] for name, ours in OURS.items() if name in rows}
        lengths[str(1370 * int(views))] = {name: round(time, 4) for name, time in times.items()}
    stored = json.loads(SPEEDS.read_text(encoding="utf-8")) if SPEEDS.is_file() else {}
    architecture = gpu["compute_capability"].replace(".", "")
    stored[architecture] = {"gpu": gpu["name"], "commit": record["commit"], "lengths": lengths}
    write_text(SPEEDS, None, json.dumps(dict(sorted(stored.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
