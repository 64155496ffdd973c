"""Calibrate INT8, build it, and compare it with float32 on scenes whose geometry is known.

python examples/05_calibrate_int8.py preset:nano build/compared
"""

import sys
from pathlib import Path

from mapengine.calibration.data.cases import rendered_cases
from mapengine.calibration.evaluation import evaluate
from mapengine.calibration.ranges import save_calibration
from mapengine.export import build_engine, load_model
from mapengine.export.quantization import calibrate
from mapengine.runtime import Engine

SIZE = (140, 112)  # what preset:nano was trained at


def main(model_name: str, out: str, scenes: int = 10) -> None:
    model = load_model(model_name)
    calibration = calibrate(model, rendered_cases(8, SIZE, model.data_norm_type))
    Path(out).mkdir(parents=True, exist_ok=True)
    save_calibration(calibration, Path(out, "calibration.json"))
    build_engine(model, Path(out, "fp32"), resolutions=[SIZE])
    build_engine(model, Path(out, "int8"), precision="int8", resolutions=[SIZE], calibration=calibration)

    for precision in ("fp32", "int8"):
        engine = Engine.load(Path(out, precision), "onnxruntime")  # which it was built with
        results = evaluate(engine, int(scenes), tasks=["image-only-2", "depth"], size=SIZE).to_json()["results"]
        megabytes = sum(file.stat().st_size for file in Path(out, precision).iterdir()) / 1e6
        errors = ", ".join(
            f"{task}: {100 * result['metrics']['depth_abs_rel']:.2f} %" for task, result in results.items()
        )
        print(f"{precision}: {megabytes:.1f} MB, depth error with {errors}")


if __name__ == "__main__":
    main(*sys.argv[1:])
