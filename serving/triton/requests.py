"""From the tensors of a request to the views of ``infer``, and from its predictions to tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from mapengine.runtime.errors import InputError
from mapengine.runtime.geometry import Array
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.options import InferOptions

from .settings import Limits
from .tensors import GEOMETRY, IMAGES, PER_VIEW

Tensors = Mapping[str, Array]

_NUMBERS = tuple(option.name for option in fields(InferOptions) if option.type == "float")
_RESERVED = ("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output")
"""Parameters of a request that are Triton's own."""


def engine_views(tensors: Tensors, limits: Limits, norm_type: str) -> list[dict[str, Any]]:
    """Return the views of a request of arrays in the form that ``infer`` takes.

    Args:
        tensors: by the names of :data:`.tensors.ARRAY_INPUTS`; what a request leaves out is not there.
        limits: of the model.
        norm_type: how the network wants images normalised.

    Raises:
        InputError: more than the limits allow, or tensors of different numbers of views.
    """
    images = tensors[IMAGES.name]
    limits.check_views(len(images))
    limits.check_bytes(sum(array.nbytes for array in tensors.values()))
    limits.check_pixels(images.shape[2], images.shape[1], IMAGES.name)
    known = view_geometry(tensors, len(images))
    return [
        {"img": normalize_image(image, norm_type), "data_norm_type": [norm_type]}
        | {name: value[None] for name, value in geometry.items()}
        for image, geometry in zip(images, known, strict=True)
    ]


def view_geometry(tensors: Tensors, count: int) -> list[dict[str, Array]]:
    """Return what is known of each of ``count`` views beside its image, without an axis of samples.

    Raises:
        InputError: a tensor of another number of views, or one that says which views have what no view has.
    """
    given = [tensor.name for tensor in GEOMETRY if tensor.name in tensors]
    for name in given:
        if len(tensors[name]) != count:
            raise InputError(f"{name} has {len(tensors[name])} entries for {count} images; give one per view")
    flags = {tensor.name: f"has_{tensor.name}" for tensor in PER_VIEW}
    for name, flag in flags.items():
        if flag in given and name not in given:
            raise InputError(f"{flag} is given without {name}; give both, or neither")
    return [
        {
            name: tensors[name][index]
            for name in given
            if name not in flags.values() and (flags.get(name) not in given or tensors[flags[name]][index])
        }
        for index in range(count)
    ]


def options_of_request(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``infer`` that the parameters of a request name.

    Numbers may come as text, because not every client can write fractions into parameters.

    Raises:
        InputError: an option that does not exist, or a value that is refused.
    """
    options = {name: value for name, value in parameters.items() if name not in _RESERVED}
    for name in _NUMBERS:
        if isinstance(options.get(name), str):
            try:
                options[name] = float(options[name])
            except ValueError:
                continue  # refused below
    InferOptions.of(**options)
    return options


def result_tensors(predictions: Sequence[Mapping[str, Array]], names: Iterable[str]) -> dict[str, Array]:
    """Return what ``infer`` predicted, views along the first axis: V predictions of one sample each."""
    return {name: np.concatenate([view[name] for view in predictions]) for name in names if name in predictions[0]}
