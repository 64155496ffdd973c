"""What fewer keys in the layers with attention over all views cost: an ablation by block and share, as geometry.

    python benchmarks/kept_keys.py --json benchmarks/results/kept-keys-nano.json
    python benchmarks/kept_keys.py --walks 20 --frames 24 --json benchmarks/results/kept-keys-nano-walks.json

Held-out rendered scenes, or windows of rendered walks, are reconstructed by the PyTorch reference with all keys and
with each choice; of every error metric the part that is kept is shown (``mapengine.calibration.evaluation.retention``)
with its standard error over scenes. A choice is what ``--attention`` takes. Behind a ``+`` stand variants that builds
do not have, computed with a mask: ``own`` keeps all keys of the query's own view, ``mean`` adds the mean key and value
of what each view dropped, ``meanlog`` weighs that mean as so many keys, ``weight`` weighs each key of a grid by the
inverse of the share, and ``noreference`` takes the grid of the reference view too.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mapengine.calibration.evaluation import HELD_OUT_SEED, SceneScore
from mapengine.calibration.evaluation.evaluate import rendered_scenes
from mapengine.calibration.evaluation.retention import retention, retention_errors
from mapengine.calibration.evaluation.scoring import aggregate, score
from mapengine.calibration.evaluation.tasks import Task, task_views
from mapengine.calibration.evaluation.truth import EvaluationScene, Truth
from mapengine.export.attention.choice import AttentionChoice
from mapengine.export.model.network.kept_keys import key_indices
from mapengine.export.model.network.model import with_key_shares
from mapengine.export.model.reference import MapAnything, load_model
from mapengine.runtime.bundle.kernel_attention import kept_keys, kept_side
from mapengine.runtime.bundle.requests import PATCH_SIZE
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

METRICS = (
    *("depth_abs_rel", "metric_depth_abs_rel", "ray_degrees", "rotation_degrees", "ate", "points_abs_rel"),
    "metric_scale_abs_rel",
)
SIZE = (140, 112)
WALK_FRAMES = 300
VARIANTS = ("own", "mean", "meanlog", "weight", "noreference")
CHOICES = (
    *(f"native:kv={share}@{block}" for share in (0.25, 0.0625) for block in (0, 2, 4, 6)),
    *(f"native:kv={share}" for share in (0.5, 0.25)),
)


@dataclass(frozen=True, eq=False)
class Window:
    """Frames of a walk as a scene to evaluate; see :class:`mapengine.calibration.evaluation.truth.EvaluationScene`."""

    images: Any
    depth_z: Any
    mask: Any
    intrinsics: Any
    poses: Any
    seed: int


def windows(walks: int, frames: int, step: int) -> Iterator[Window]:
    """Yield a window of every walk: ``frames`` frames, each ``step`` behind the one before."""
    from mapengine.calibration.scenes import render_walk

    for number in range(walks):
        walk = render_walk(HELD_OUT_SEED + number, WALK_FRAMES, *SIZE)
        first = number * 53 % (WALK_FRAMES - frames * step)
        taken = [walk[first + step * index] for index in range(frames)]
        arrays = {name: np.stack([getattr(frame, name) for frame in taken]) for name in ("image", "depth_z", "mask")}
        yield Window(
            arrays["image"],
            arrays["depth_z"],
            arrays["mask"],
            np.stack([frame.intrinsics for frame in taken]),
            np.stack([frame.pose for frame in taken]),
            HELD_OUT_SEED + number,
        )


class MaskedAttention:
    """A global layer with a variant of fewer keys, all scores in memory; in place of the layer's ``forward``."""

    def __init__(self, attention: Any, share: float, variants: Sequence[str], shape: Mapping[str, int]) -> None:
        self._attention, self._share, self._variants, self._shape = attention, share, variants, shape

    def __call__(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """See :class:`mapengine.export.model.network.transformer.Attention`."""
        layer, (batch, length, dim) = self._attention, x.shape
        views, rows, columns = (self._shape[name] for name in ("views", "rows", "columns"))
        tokens, patches = (length - 1) // views, rows * columns
        heads = layer.qkv(x).reshape(batch, length, 3, layer.num_heads, dim // layer.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        kept = torch.zeros(length, dtype=torch.bool)
        kept[key_indices(views, rows, columns, tokens - patches, self._share, x.device)] = True
        by_view = kept[:-1].reshape(views, tokens)  # a view of the same memory
        grid = by_view[-1].clone()
        if "noreference" in self._variants:
            by_view[0] = grid
        bias = torch.where(kept, 0.0, -math.inf).expand(length, length).clone()
        count = kept_side(rows, self._share) * kept_side(columns, self._share)
        if "weight" in self._variants:
            weights = torch.zeros(views, tokens)
            weights[1:, :patches] = math.log(patches / count)
            bias = bias + torch.cat([weights.reshape(-1), torch.zeros(1)])
        if "own" in self._variants:
            view = torch.arange(length) // tokens
            bias[view[:, None] == view] = 0.0
        if {"mean", "meanlog"} & set(self._variants) and patches > count and views > 1:
            dropped = torch.nonzero(~grid[:patches])[:, 0]
            means = [
                part[:, :, :-1].reshape(batch, layer.num_heads, views, tokens, -1)[:, :, 1:, dropped].mean(3)
                for part in (key, value)
            ]
            key, value = (torch.cat(pair, 2) for pair in zip((key, value), means, strict=True))
            weight = math.log(len(dropped)) if "meanlog" in self._variants else 0.0
            bias = torch.cat([bias, torch.full((length, views - 1), weight)], 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return torch.as_tensor(layer.proj(out.transpose(1, 2).reshape(batch, length, dim)))


def with_choice(model: MapAnything, choice: str, shape: Mapping[str, int]) -> MapAnything:
    """Return the network with a choice of keys; one with a variant takes calls of ``shape`` alone."""
    text, *variants = choice.split("+")
    shares = AttentionChoice.parse(text).key_shares(model.config)
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"there is no variant {', '.join(unknown)}; use some of {', '.join(VARIANTS)}")
    network = with_key_shares(model, shares)
    if variants:
        for block, share in shares.items():
            layer = network.info_sharing.self_attention_blocks[block].attn
            layer.forward = MaskedAttention(layer, share, variants, shape)  # type: ignore[method-assign, assignment]
    return network


def measure(
    model: MapAnything, choices: Sequence[str], source: Iterator[EvaluationScene], tasks: Sequence[Task], total: int
) -> dict[str, dict[str, list[SceneScore]]]:
    """Score every choice on every scene, by choice and task; ``""`` keeps all keys."""
    shape = {"views": tasks[0].views, "rows": SIZE[1] // PATCH_SIZE, "columns": SIZE[0] // PATCH_SIZE}
    networks = {"": model, **{choice: with_choice(model, choice, shape) for choice in choices}}
    scores: dict[str, dict[str, list[SceneScore]]] = {name: {task.name: [] for task in tasks} for name in networks}
    start = time.perf_counter()
    for done, scene in enumerate(source):
        truth = Truth.of(scene, f"scene {done}")
        for task in tasks:
            views = task_views(task, scene, model.data_norm_type)
            part = truth.first(task.views)
            for choice, network in networks.items():
                found = network.infer(views, use_amp=False, apply_mask=False)
                scores[choice][task.name].append(score(found, part, f"scene {done}, {choice}"))
        print(f"{done + 1} of {total} scenes, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return scores


def compared(scores: Mapping[str, Mapping[str, list[SceneScore]]], choices: Sequence[str]) -> list[dict[str, Any]]:
    """Return what every choice keeps of each metric of each task, with standard errors.

    ``all`` is the geometric mean of the metrics: its error counts what they have in common, because all are drawn over
    the same scenes.
    """
    plain = {task: aggregate(found) for task, found in scores[""].items()}
    rows = []
    for choice in choices:
        parts = retention({task: aggregate(found) for task, found in scores[choice].items()}, plain)
        errors = retention_errors(scores[choice], scores[""])
        tasks: dict[str, Any] = {}
        for task in plain:
            known = [metric for metric in METRICS if (task, metric) in parts]
            tasks[task] = {m: [round(parts[task, m], 5), round(errors[task, m], 5)] for m in known}
            mean, error = _mean(scores[choice][task], scores[""][task])
            tasks[task]["all"] = [round(mean, 5), round(error, 5)]
        rows.append({"choice": choice, "tasks": tasks})
    return rows


def _mean(found: Sequence[SceneScore], plain: Sequence[SceneScore], resamples: int = 400) -> tuple[float, float]:
    """Return the geometric mean of what is kept of the metrics, and its standard error by the bootstrap over scenes."""
    rng = np.random.default_rng(0)

    def mean(chosen_scenes: Any) -> float:
        sides = ({"": aggregate([side[i] for i in chosen_scenes])} for side in (found, plain))
        parts = retention(*sides)
        return float(np.exp(np.mean([np.log(parts["", m]) for m in METRICS if ("", m) in parts])))

    draws = [mean(rng.integers(len(plain), size=len(plain))) for _ in range(resamples)]
    return mean(range(len(plain))), float(np.std(draws))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choices", nargs="*", default=CHOICES, help="what --attention takes, perhaps with +VARIANT")
    parser.add_argument("--model", default="preset:nano")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--walks", type=int, help="windows of so many walks instead of scenes")
    parser.add_argument("--frames", type=int, default=24, help="of a window of a walk")
    parser.add_argument("--step", type=int, default=2, help="frames of the walk from one of a window to the next")
    parser.add_argument("--posed", action="store_true", help="give intrinsics and poses too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("build/kept-keys.json"), help="where to write the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    model.finishes_in_numpy = True
    views = 8 if args.walks is None else args.frames
    tasks = [Task("images", views), *([Task("posed", views, intrinsics=True, poses=True)] if args.posed else [])]
    total = args.scenes if args.walks is None else args.walks
    source = (
        rendered_scenes(total, HELD_OUT_SEED, SIZE, views)
        if args.walks is None
        else windows(total, args.frames, args.step)
    )
    scores = measure(model, args.choices, source, tasks, total)
    rows, columns, extra = SIZE[1] // PATCH_SIZE, SIZE[0] // PATCH_SIZE, int(model.config.use_class_token)
    shares = sorted(
        {s for c in args.choices for s in AttentionChoice.parse(c.partition("+")[0]).key_shares(model.config).values()}
    )
    record = {
        "benchmark": "kept_keys",
        "what": f"{total} {'scenes' if args.walks is None else 'windows of walks'} of {views} views of 140x112",
        "model": model.model_id,
        "weights_sha256": model.weights_hash(),
        "seed": HELD_OUT_SEED,
        "walks": None if args.walks is None else {"frames": WALK_FRAMES, "step": args.step},
        **record_origin("mapengine", "torch", "numpy"),
        "keys": {
            f"{share:g}": kept_keys(views, rows, columns, extra, share) / kept_keys(views, rows, columns, extra, 1.0)
            for share in shares
        },
        "errors": {task.name: {m: aggregate(scores[""][task.name])[m] for m in METRICS} for task in tasks},
        "results": compared(scores, args.choices),
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
