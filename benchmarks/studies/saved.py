"""Count what encoding each view once saves, by the formulas of the network's work. Writes JSON; measures nothing.

python benchmarks/studies/saved.py --json benchmarks/results/saved-giant.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mapengine.export.diagnosis.costs import CallShape, stage_costs, total
from mapengine.export.model.config_json import parse_config
from mapengine.export.model.presets import preset_config
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

ROWS, COLUMNS = 28, 37
VIEWS = (2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="giant", help="a preset")
    parser.add_argument("--json", type=Path, default=Path("build/saved.json"), help="where to write the record")
    args = parser.parse_args()
    config = parse_config(preset_config(args.model))
    results = {}
    for views in VIEWS:
        costs = stage_costs(config, CallShape(views, ROWS, COLUMNS))
        whole, encoder = total(costs).flops, costs["image_encoder"].flops
        results[str(views)] = {
            "tflop": whole / 1e12,
            "encoder": encoder / whole,
            "window": (views - 1) / views * encoder / whole,
            "pose": encoder / whole,
        }
    record = {
        "benchmark": "saved",
        "what": f"`preset:{args.model}` at 518x392, operations of products and convolutions, counted by formula",
        **record_origin("mapengine", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
