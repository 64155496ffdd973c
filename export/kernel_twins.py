"""The network with the plain twins of our attention kernels: what a kernel's rounding or choice of keys costs.

A twin computes what the kernel computes, with the same rounding, in PyTorch (``mapengine.kernels``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mapengine.runtime.errors import ExportError
from mapengine.runtime.kernel_attention import MINIMUM_SHARE
from mapengine.runtime.parity import measure_parity

from .attention_choice import KernelChoice
from .reference import MapAnything

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention over (1, L, H, D) queries, keys and values."""

EXACT = "flash"
"""The kernel that rounds no more than the library's own attention."""


def twin(choice: KernelChoice, view_tokens: int, extra_tokens: int) -> Attend:
    """The plain twin of a kernel, for views of ``view_tokens`` tokens.

    Raises:
        ExportError: Triton, whose package has the twins too, is not installed.
    """
    try:
        from mapengine.kernels.dense import dense_attention_reference
        from mapengine.kernels.int8 import int8_attention_reference
        from mapengine.kernels.selection import Selection
        from mapengine.kernels.sparse import sparse_attention_reference
    except ImportError as error:
        raise ExportError(
            f"attention by our own kernels needs Triton to build ({error}); run: pip install 'mapengine[kernels]'"
        ) from error
    kind = choice.traits
    if choice.threshold is not None:
        selection = Selection(choice.threshold, MINIMUM_SHARE, view_tokens=view_tokens, extra_tokens=extra_tokens)
        return lambda query, key, value: sparse_attention_reference(
            query, key, value, selection, int8=kind.int8, fp8_values=kind.fp8
        )
    if kind.int8:
        return lambda query, key, value: int8_attention_reference(query, key, value, fp8_values=kind.fp8)
    return dense_attention_reference


@contextlib.contextmanager
def with_twins(model: MapAnything, layers: Mapping[str, KernelChoice]) -> Iterator[None]:
    """Let the named attention modules compute as their kernels do, in float16; everything else is as before."""
    extra = int(model.config.use_class_token)
    views = [0]

    def count(_: Any, inputs: Any, keywords: Any) -> None:
        given = [*inputs, *keywords.values()]
        views[0] = next(value.shape[1] for value in given if isinstance(value, Tensor))  # (B, V, T, E)

    def forward(layer: Any, choice: KernelChoice) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            view_tokens = (x.shape[1] - 1) // views[0]
            parts = layer.qkv(x).half().reshape(*x.shape[:2], 3, layer.num_heads, -1).unbind(2)
            return layer.proj(twin(choice, view_tokens, extra)(*parts).float().reshape(x.shape))

        return run

    hook = model.info_sharing.register_forward_pre_hook(count, with_kwargs=True)
    changed = [(model.get_submodule(name), choice) for name, choice in layers.items()]
    for layer, choice in changed:
        layer.forward = forward(layer, choice)
    try:
        yield
    finally:
        hook.remove()
        for layer, _ in changed:
            del layer.forward


def kernel_tolerance(
    model: MapAnything, layers: Mapping[str, KernelChoice], cases: Mapping[str, Any], margin: float
) -> dict[str, float]:
    """Allowed difference per output that the kernels add, relative to its largest value: ``margin`` times what their
    twins cost the reference over ``cases``. Nothing for ``flash``, which rounds no more than other attention."""
    layers = {name: choice for name, choice in layers.items() if choice.kernel != EXACT}
    if not layers:
        return {}
    wanted = {name: model.predict(views, use_amp=False) for name, views in cases.items()}
    with with_twins(model, layers):
        found = {name: model.predict(views, use_amp=False) for name, views in cases.items()}
    parity = measure_parity(found, wanted, "PyTorch, with the kernels' twins")
    return {key: margin * output.max_rel for key, output in parity.outputs.items()}
