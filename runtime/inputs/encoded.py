"""Images that went through the image encoder once, to be used in any number of later calls.

The encoder looks at every image alone, and is half of the work at eight views (``docs/guide/many-views.md``): a view
that comes back, in a video or while other inputs change, does not have to be encoded again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .checks import is_tensor

Array = NDArray[np.float32]

ENCODED_KEYS = ("img", "data_norm_type")
"""What the image encoder sees of a view's dictionary."""


@dataclass(frozen=True)
class ImageFeatures:
    """What the image encoder gives for one view of B samples: ``patches`` (B, rows, columns, E) and, where the network
    has them, ``extra`` tokens (B, X, E)."""

    patches: Array
    extra: Array | None = None


@dataclass(frozen=True, eq=False)
class EncodedView:
    """One view after :meth:`mapengine.runtime.Engine.encode`, to be given to ``infer`` in place of its dictionary.

    To change what is known about the view, give ``infer`` a dictionary with the encoded view as ``img``: then only the
    keys of that dictionary count.

    Attributes:
        view: the dictionary that was encoded, with its image.
        features: what the encoder gave.
        encoder: identity of the bundle that encoded it; no other takes it.
    """

    view: Mapping[str, Any]
    features: ImageFeatures = field(repr=False)
    encoder: str

    def __repr__(self) -> str:
        return f"EncodedView({np.shape(self.view['img'])}, with {', '.join(sorted(self.view.keys() - {'img'}))})"

    @property
    def nbytes(self) -> int:
        """Bytes of the features; the image comes on top."""
        extra = self.features.extra
        return self.features.patches.nbytes + (0 if extra is None else extra.nbytes)


def snapshot(value: Any) -> Any:
    """Return a copy that nothing the caller does to ``value`` changes: arrays, tensors, lists and dictionaries.

    A camera loop fills the same buffers for every frame, so whatever outlives a call has to be one.
    """
    if isinstance(value, dict):
        return {key: snapshot(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [snapshot(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if is_tensor(value):
        return value.detach().clone()
    try:
        return np.array(value) if isinstance(value, memoryview) else copy.deepcopy(value)
    except Exception as error:  # whatever the classes of others raise
        raise InputError(f"a {type(value).__name__} cannot be copied ({error}); give NumPy arrays") from error


def unpack_views(views: Any, encoder: str | None) -> tuple[Sequence[Mapping[str, Any]], list[ImageFeatures | None]]:
    """Views as plain dictionaries, and the features of those that were encoded.

    Args:
        views: dictionaries, encoded views, or dictionaries with an encoded view as ``img``.
        encoder: identity of the bundle that is to use them; None for what cannot use any.

    Raises:
        InputError: a view was encoded by another bundle.
    """
    if isinstance(views, Mapping | str | EncodedView) or not isinstance(views, Sequence):
        nothing: Any = views  # whoever checks the views says what is wrong
        return nothing, []
    plain: list[Mapping[str, Any]] = []
    features: list[ImageFeatures | None] = []
    for index, view in enumerate(views):
        encoded = view.get("img") if isinstance(view, Mapping) else view
        if not isinstance(encoded, EncodedView):
            plain.append(view)
            features.append(None)
            continue
        if encoded.encoder != encoder:
            what = (
                "this network cannot use encoded views; give it the images"
                if encoder is None
                else ("it was encoded by another bundle; encode it again with this engine")
            )
            raise InputError(f"view {index}: {what}")
        if encoded is view:
            plain.append(encoded.view)
        else:
            same = {key: encoded.view[key] for key in ENCODED_KEYS}
            plain.append({**same, **{key: value for key, value in view.items() if key != "img"}})
        features.append(encoded.features)
    return plain, features


def kept_of(view: Mapping[str, Any], features: ImageFeatures | None) -> dict[str, Any]:
    """What an encoded view keeps of a dictionary; the image of one that was encoded before is not the caller's."""
    encoded = () if features is None else ENCODED_KEYS
    return {key: value if key in encoded else snapshot(value) for key, value in view.items()}


def images_of(views: Any) -> Any:
    """Views without what they bring besides the image: that is checked in the call which uses it."""
    if isinstance(views, Mapping | str) or not isinstance(views, Sequence):
        return views
    return [{key: v[key] for key in ENCODED_KEYS if key in v} if isinstance(v, Mapping) else v for v in views]
