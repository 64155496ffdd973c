"""The options of a call of ``infer``: names, order, defaults, limits and meanings stand here and nowhere else."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from .errors import InputError

Progress = Callable[[str, int, int], None]
"""Called with a stage, the views that it has finished, and how many it will do."""

AMP_DTYPES = ("fp16", "bf16", "fp32")

OUTPUTS = (
    "pts3d",
    "pts3d_cam",
    "ray_directions",
    "depth_along_ray",
    "cam_trans",
    "cam_quats",
    "metric_scaling_factor",
    "conf",
    "non_ambiguous_mask",
    "non_ambiguous_mask_logits",
    "img_no_norm",
    "depth_z",
    "intrinsics",
    "camera_poses",
    "mask",
)
"""What ``infer`` can return of a view, in its order."""

LIMITS: dict[str, tuple[float, float]] = {
    "edge_normal_threshold": (0, 180),
    "edge_depth_threshold": (0, math.inf),
    "confidence_percentile": (0, 100),
    "multiview_conf_depth_abs_thresh": (0, math.inf),
    "multiview_conf_depth_rel_thresh": (0, math.inf),
}
"""Smallest and largest value of every option that is a number; infinity itself is refused."""

Function = TypeVar("Function", bound=Callable[..., Any])
Options = TypeVar("Options")


@dataclass(frozen=True)
class InferOptions:
    """How one call of ``infer`` runs; names, order and defaults are those of MapAnything's ``infer``.

    Every value is checked when the object is made.

    Attributes:
        memory_efficient_inference: Decode in chunks of views.
        minibatch_size: Views that the dense head decodes at once; fewer take less memory. Chosen if not given.
        use_amp: Allow reduced precision where there is a choice, which only the PyTorch reference on a GPU has. An
            engine always runs in the precision that it was built with.
        amp_dtype: The reduced precision: "fp16", "bf16" or "fp32".
        apply_mask: Add ``mask``, and set points and depth outside it to 0.
        mask_edges: Leave out pixels at depth edges that are edges of the normals, too.
        edge_normal_threshold: Angle between neighbouring normals that is an edge, degrees.
        edge_depth_threshold: Depth difference of neighbours that is an edge, relative to the depth.
        apply_confidence_mask: Leave out the least confident pixels of each image.
        confidence_percentile: Percentage of the pixels of each image, the least confident, to leave out.
        ignore_calibration_inputs: Use no intrinsics or ray directions; depth keeps the conversion by them.
        ignore_depth_inputs: Use no depth.
        ignore_pose_inputs: Use no poses.
        ignore_depth_scale_inputs: Take depth as not metric.
        ignore_pose_scale_inputs: Take poses as not metric.
        use_multiview_confidence: Replace ``conf`` by the share of views whose depth agrees.
        multiview_conf_depth_abs_thresh: Difference up to which depths agree, metres.
        multiview_conf_depth_rel_thresh: Difference up to which depths agree, relative to the depth; added to the other.

    Raises:
        InputError: a value of another type or outside its limits; the message names the option.
    """

    memory_efficient_inference: bool = True
    minibatch_size: int | None = None
    use_amp: bool = True
    amp_dtype: str = "bf16"
    apply_mask: bool = True
    mask_edges: bool = True
    edge_normal_threshold: float = 5.0
    edge_depth_threshold: float = 0.03
    apply_confidence_mask: bool = False
    confidence_percentile: float = 10
    ignore_calibration_inputs: bool = False
    ignore_depth_inputs: bool = False
    ignore_pose_inputs: bool = False
    ignore_depth_scale_inputs: bool = False
    ignore_pose_scale_inputs: bool = False
    use_multiview_confidence: bool = False
    multiview_conf_depth_abs_thresh: float = 0.02
    multiview_conf_depth_rel_thresh: float = 0.02

    def __post_init__(self) -> None:
        for option in fields(self):
            value = _READERS[str(option.type)](option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)

    @classmethod
    def of(cls, *values: Any, **named: Any) -> InferOptions:
        """Return the options given to ``infer``, in MapAnything's order or by name.

        Raises:
            InputError: an option that does not exist, or a value that is refused.
        """
        return options_of(cls, *values, **named)

    @property
    def reduced_precision(self) -> str | None:
        """``amp_dtype`` if reduced precision is allowed, else None."""
        return self.amp_dtype if self.use_amp else None

    def head_chunk(self, views: int) -> int | None:
        """Return how many of ``views`` views the dense head decodes at once; None where that may be chosen."""
        return self.minibatch_size if self.memory_efficient_inference else views


def chosen_outputs(outputs: Any, options: InferOptions) -> tuple[str, ...]:
    """Return the names among :data:`OUTPUTS` that a call asks for, in their order; None stands for all of them.

    Raises:
        InputError: something else than names of outputs, or ``mask`` in a call without masks.
    """
    if outputs is None:
        return OUTPUTS
    wanted = [] if isinstance(outputs, str) or not isinstance(outputs, Iterable) else list(outputs)
    if not wanted:
        raise InputError(f"outputs is {reprlib.repr(outputs)}; give a list of names, such as ('pts3d', 'mask')")
    for name in wanted:
        if not isinstance(name, str) or name not in OUTPUTS:
            near = difflib.get_close_matches(str(name), OUTPUTS, n=1, cutoff=0.0)[0]
            raise InputError(
                f"outputs names {reprlib.repr(name)}, which infer does not return; the nearest is {near!r} "
                f"(all: {', '.join(OUTPUTS)})"
            )
    if "mask" in wanted and not options.apply_mask:
        raise InputError(
            "outputs names 'mask', but apply_mask is False; ask for 'non_ambiguous_mask', or leave apply_mask True"
        )
    return tuple(name for name in OUTPUTS if name in wanted)


def check_progress(progress: Any) -> None:
    """Refuse a ``progress`` that is neither a function nor None (InputError)."""
    if progress is not None and not callable(progress):
        raise InputError(f"progress is a {type(progress).__name__}; give a function of stage, done and total")


def options_of(cls: type[Options], *values: Any, **named: Any) -> Options:
    """Return the options of a dataclass of options, in its order or by name.

    Raises:
        InputError: an option that does not exist, or a value that is refused.
    """
    make: Any = cls
    known = [option.name for option in fields(make)]
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"the nearest is {near[0]!r}" if near else f"help({cls.__name__}) lists them all"
            raise InputError(f"there is no option {name!r}; {hint}")
    result: Options = make(*values, **named)
    return result


def option_help(name: str, of: type = InferOptions) -> str:
    """Return what an option of a dataclass of options means, in one line."""
    text = inspect.getdoc(of) or ""
    found = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def shows_options_of(cls: type[Any]) -> Callable[[Function], Function]:
    """Return a decorator that puts options into the signature that ``inspect``, ``help`` and editors show.

    They stand for the ``*values`` and ``**options`` of a function; by name only where it has no ``*values``.
    """

    def shows(function: Function) -> Function:
        signature = inspect.signature(function)
        own = signature.parameters.values()
        in_order = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in own)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if in_order else inspect.Parameter.KEYWORD_ONLY
        options = [inspect.Parameter(o.name, kind, default=o.default, annotation=o.type) for o in fields(cls)]
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        shown = [*(parameter for parameter in own if parameter.kind not in variadic), *options]
        shown.sort(key=lambda parameter: parameter.kind)  # stable: what is given by name moves behind the options
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return shows


shows_options = shows_options_of(InferOptions)


def _flag(name: str, value: Any) -> bool:
    # The word "no" would count as True.
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {reprlib.repr(value)}; it must be True or False")
    return bool(value)


def _number(name: str, value: Any) -> float:
    low, high = LIMITS[name]
    limit = f"between {low:g} and {high:g}" if math.isfinite(high) else f"finite and at least {low:g}"
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (low <= value <= high and math.isfinite(value)):
        raise InputError(f"{name} is {reprlib.repr(value)}; it must be a number, {limit}")
    return float(value)


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {reprlib.repr(value)}; give a positive integer or None")
    return int(value)


def _amp_dtype(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in AMP_DTYPES:
        raise InputError(f"{name} is {reprlib.repr(value)}; use one of {', '.join(AMP_DTYPES)}")
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "bool": _flag,
    "float": _number,
    "int | None": _count,
    "str": _amp_dtype,
}
"""How a value is checked, by the annotation of its option."""

DEFAULTS = InferOptions()
