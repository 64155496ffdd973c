"""The comparison of layers as a picture: where a precision loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import figure


def draw_layers(record: Mapping[str, Any], path: Path) -> None:
    """Draw what each layer loses, in running order, a panel per stage, with the limit and the layers beyond it named.

    Of 16 bits that is the largest relative difference; of 8 bits the signal-to-noise ratio in decibels.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the picture could not be written.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for layer in record["layers"]:
        stages.setdefault(layer["stage"], []).append(layer)
    noise = record["measure"] == "snr"
    with figure(path, max(len(stages), 1), 1, (11, 1 + 2.6 * max(len(stages), 1))) as grid:
        for (stage, layers), (axis,) in zip(stages.items(), grid, strict=True):
            values = [float(layer[record["measure"]]) for layer in layers]
            shown = [value if math.isfinite(value) and (noise or value > 0) else math.nan for value in values]
            axis.plot(range(len(layers)), shown, marker="o", markersize=3, linewidth=0.8, label="output of the layer")
            streams = [layer.get("stream_snr") for layer in layers]
            if noise and any(value is not None for value in streams):
                points = [(place, float(value)) for place, value in enumerate(streams) if value is not None]
                axis.plot(*zip(*points, strict=True), "_", color="C1", label="residual stream behind it")
            axis.axhline(record["limit"], color="C3", linewidth=0.8, linestyle="--", label="limit")
            if not noise:
                axis.set_yscale("log")
            for place, value in enumerate(values):
                if not math.isfinite(value) and not (noise and value > 0):
                    axis.axvline(place, color="C3", linewidth=0.8)
            _name_worst(axis, layers, values, noise)
            axis.set_title(stage, fontsize=9, loc="left")
            axis.set_xlabel("layer, in running order", fontsize=8)
            axis.set_ylabel("signal to noise, dB" if noise else "largest difference, relative", fontsize=8)
            axis.xaxis.get_major_locator().set_params(integer=True)
        grid[0][0].legend(fontsize=7, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
        model = "{model}, {precision}: {compared} against float32".format(**record)
        grid[0][0].set_title(f"{model}\n{next(iter(stages), '')}", fontsize=9, loc="left")


def _name_worst(axis: Any, layers: list[Mapping[str, Any]], values: list[float], noise: bool, count: int = 3) -> None:
    """Write the names of the layers that lose most beside their points."""
    order = sorted(range(len(values)), key=lambda place: values[place] if noise else -values[place])
    for place in order[:count]:
        if math.isfinite(values[place]):
            # The block and what of it: the rest is the same for all layers of a stage.
            name = layers[place]["layer"].rpartition("blocks.")[2]
            below = {"xytext": (0, -5), "va": "top"} if noise else {"xytext": (0, 4), "va": "bottom"}
            axis.annotate(name, (place, values[place]), textcoords="offset points", ha="center", fontsize=7, **below)
