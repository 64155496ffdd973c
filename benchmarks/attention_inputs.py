"""Queries, keys and values of a trained network on a rendered scene: what decides how much a sparse kernel may drop."""

from __future__ import annotations

from typing import Any

MODEL = "preset:nano"


def trained_qkv(views: int, side: int) -> tuple[Any, Any, Any]:
    """Of all global attention layers of :data:`MODEL`, as heads of one attention: (1, L, layers * heads, D) float16.

    L is ``views`` * ((``side`` / 14)^2 + 1) + 1: patches and class token of each view, then the scale token.
    """
    import torch

    from mapengine.calibration.scenes import render_scene
    from mapengine.export import load_model
    from mapengine.runtime import preprocess_inputs

    model = load_model(MODEL)
    scene = render_scene(1_700_000, views, side, side)
    layers: list[Any] = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda _, __, output: layers.append(output))
        for block in model.info_sharing.self_attention_blocks[::2]
    ]
    inputs = [{"img": image} for image in scene.images]
    model.predict(preprocess_inputs(inputs, resize_mode="fixed_size", size=(side, side)), use_amp=False)
    for hook in hooks:
        hook.remove()
    heads = model.config.aggregator.block.num_heads
    parts = [x.reshape(1, x.shape[1], 3, heads, -1) for x in layers]
    query, key, value = (torch.cat([p[:, :, i] for p in parts], 2).half().contiguous() for i in range(3))
    return query, key, value
