"""Turn the log of a training run into a record and a picture of its curves.

    python benchmarks/training.py build/training/nano --json benchmarks/results/training-nano.json \
        --plot docs/images/training-nano.png

The record keeps every validation and a hundred points of the training losses.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime.system.origin import source_commit
from mapengine.runtime.writing.files import atomic_write, write_record
from mapengine.runtime.writing.recognition import marker

_POINTS = 100
_SHOWN = {"depth_abs_rel": "depth AbsRel", "rotation_degrees": "rotation error (degrees)"}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records in order; of steps that were trained again after an interruption, the last try."""
    by_step: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_step[record["step"], list(record)[-1]] = record
    return [by_step[key] for key in sorted(by_step)]


def summary(folder: Path) -> dict[str, Any]:
    """Return the record of a run."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    log = read_log(folder / "log.jsonl")
    train = [record for record in log if "train" in record]
    chosen = sorted({round(i) for i in np.linspace(0, len(train) - 1, min(_POINTS, len(train)))})
    model = config.pop("model")
    return {
        "benchmark": "training",
        "run": folder.name,
        "config": config,
        "model": model["encoder_config"]["name"],
        "steps": log[-1]["step"],
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "runs": [{"step": record["step"], **record["run"]} for record in log if "run" in record],
        "train": [{"step": train[i]["step"], **train[i]["train"]} for i in chosen],
        "validation": [{"step": r["step"], **r["validation"]} for r in log if "validation" in r],
        "commit": source_commit(),
    }


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw losses, and errors on held-out scenes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    steps = [point["step"] for point in record["train"]]
    for name in ("depth", "local_points", "rotation", "rays", "scale"):
        axes[0].plot(steps, [point[name] for point in record["train"]], label=name, linewidth=1.2)
    axes[0].set_ylabel("training loss (terms, unweighted)")
    for axis, (metric, label) in zip(axes[1:], _SHOWN.items(), strict=True):
        points = record["validation"]
        for task in (name for name in points[0] if name != "step"):
            axis.plot(
                [p["step"] for p in points], [p[task][metric] for p in points], marker="o", markersize=3, label=task
            )
        axis.set_ylabel(f"{label}, held-out scenes")
        axis.set_ylim(bottom=0)
    switches = np.cumsum([phase["steps"] for phase in record["config"]["phases"]])[:-1]
    for axis in axes:
        axis.set_xlabel("step")
        for switch in switches:
            axis.axvline(switch, color="grey", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yscale("log")
    with atomic_write(path, "training plot") as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": marker("training plot")})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--json", type=Path, default=Path("build/training.json"), help="where to write the record")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    record = summary(options.run)
    write_record(options.json, record)
    if options.plot:
        plot(record, options.plot)
    print(f"{record['steps']} steps in {record['minutes']} minutes")


if __name__ == "__main__":
    main()
