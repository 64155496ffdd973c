"""Time changes of graphs on the CPU backends: each stage as it is built, beside variants of its graph.

    python benchmarks/studies/speed_work.py --bundle build/giant --json benchmarks/results/speed_work-giant.json

Variants are written from the stage's own file, so that they differ in nothing else; both are called in turn, each in a
process of its own. The ratio is variant / stage as built (above 1: the variant is slower), per round. A variant with
``static`` in its name also gets fixed shapes, with which OpenVINO folds everything that depends on them: the most that
constants instead of resized position embeddings could save.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from contest import take_turns
from cpu_options import load_onnxruntime, load_openvino, load_variant, make_inputs

from mapengine.export.graphs import products
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.files import write_json
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels

Change = Callable[[ir.Model], int]
"""Rewrites a graph; returns in how many places."""


def convolve_after_upsampling(model: ir.Model) -> int:
    """Put the 1 x 1 convolutions of the fusion blocks behind the bilinear upsampling, where upstream has them."""
    done = 0
    for resize in [node for node in model.graph if node.op_type == "Resize"]:
        value = resize.inputs[0]
        convolution = None if value is None else value.producer()
        if value is None or convolution is None or convolution.op_type != "Conv" or len(value.uses()) > 2:
            continue
        kernel = convolution.inputs[1]
        if kernel is None or kernel.shape is None or list(kernel.shape)[2:] != [1, 1]:
            continue
        # The Shape of the convolution's output gives the size of the upsampling; it is that of its input as well.
        source, upsampled = convolution.inputs[0], resize.outputs[0]
        for user, index in list(value.uses()):
            user.replace_input_with(index, source)
        users = list(upsampled.uses())
        model.graph.remove(convolution)
        convolution.replace_input_with(0, upsampled)
        model.graph.insert_after(resize, convolution)
        for user, index in users:
            user.replace_input_with(index, convolution.outputs[0])
        convolution.outputs[0].shape = None
        upsampled.shape = None
        done += 1
    return done


def separate_products(model: ir.Model) -> int:
    """Cut queries, keys and values, and gate and value of SwiGLU, out of the weights instead of out of the results."""
    return products.separate_products(model)[0]


CHANGES: dict[str, dict[str, Change]] = {
    "image_encoder": {"products cut apart": separate_products},
    "aggregator": {"products cut apart": separate_products},
    "dense_head": {"1 x 1 convolutions after upsampling": convolve_after_upsampling},
}


def measure(bundle: Bundle, stage: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time a stage and its variants on every backend and precision."""
    inputs = make_inputs(bundle, stage, args.views, *args.size)
    paths = {"as built": bundle.stage_path(stage)}
    places = {}
    for name, change in CHANGES.get(stage, {}).items():
        model = ir.load(bundle.stage_path(stage))
        places[name] = change(model)
        paths[name] = folder / f"{stage}-{len(paths)}.onnx"
        ir.save(model, paths[name], external_data=f"{paths[name].name}.data")
        del model
    chunk = args.views if stage == "aggregator" else 1
    shapes = {name: [min(chunk, len(value)), *value.shape[1:]] for name, value in inputs.items()}
    results: dict[str, Any] = {}
    for backend, load, options in BACKENDS:
        loaders: dict[str, Callable[[], Any]] = {
            name: functools.partial(load_variant, load, path, chunk, inputs, threads=args.threads, **options)
            for name, path in paths.items()
        }
        if backend.startswith("openvino"):
            more = {**options, "shapes": shapes}
            built = paths["as built"]
            loaders["static shapes"] = functools.partial(
                load_variant, load, built, chunk, inputs, threads=args.threads, **more
            )
        figures = take_turns(loaders, args.rounds)
        built_figure = figures["as built"]
        scale = np.abs(built_figure.first_output).max()
        results[backend] = {
            name: {
                "median_s": round(figure.median_s, 4),
                "times_built": round(figure.ratio(built_figure), 3),
                "max_rel_error": float(f"{np.abs(figure.first_output - built_figure.first_output).max() / scale:.1e}"),
                "places": places.get(name),
            }
            for name, figure in figures.items()
        }
    return results


BACKENDS: tuple[tuple[str, Callable[..., Any], dict[str, Any]], ...] = (
    ("onnxruntime", load_onnxruntime, {}),
    ("openvino", load_openvino, {}),
    ("openvino bf16", load_openvino, {"precision": "bf16"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument(
        "--stages", nargs="+", default=["image_encoder", "geometry_encoder", "aggregator", "dense_head"]
    )
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--json", type=Path, default=Path("build/speed_work.json"), help="where to write the record")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle, verify=False)
    results = {}
    for stage in args.stages:
        with tempfile.TemporaryDirectory(dir=args.bundle + "/..") as folder:
            results[stage] = measure(bundle, stage, args, Path(folder))
    record = {
        "benchmark": "speed_work",
        "model": bundle.manifest.model.id,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "threads": args.threads,
        "rounds": args.rounds,
        **record_origin("mapengine", "onnxruntime", "openvino", "numpy"),
        "results": results,
    }
    write_json(args.json, record)


if __name__ == "__main__":
    main()
