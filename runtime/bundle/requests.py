"""Which requests a bundle was built for: view counts, image sizes and chunk sizes.

View counts, heights and widths are plain integers; sizes are pixels, written ``WxH`` as upstream's tables write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from ..errors import ImageSizeError, ProfileError
from ..typed_json.codec import Fail
from ..typed_json.fields import Bounds, Key, Multiple, OneOf

PATCH_SIZE = 14
"""Pixels per patch side; the only patch size that MapAnything ships."""
MAX_VIEWS = 2**20
MAX_SIDE = 2**20
CHUNKED_STAGES = ("image_encoder", "geometry_encoder", "dense_head")
"""The stages that may run on a chunk of views; the aggregator needs all views together."""


Side = Annotated[int, Bounds(PATCH_SIZE, MAX_SIDE), Multiple(PATCH_SIZE)]


@dataclass(frozen=True)
class Range:
    """The values of one axis: smallest, the one to optimise for, largest (all inclusive)."""

    min: int
    opt: Annotated[int, Bounds("min")]
    max: Annotated[int, Bounds("opt")]


@dataclass(frozen=True)
class AnySize:
    """Every height and every width from ``min`` to ``max`` pixels that is a multiple of ``multiple``."""

    min: Annotated[Side, Key("any.min")]
    max: Annotated[Side, Key("any.max"), Bounds("min")]
    multiple: Annotated[Side, Key("any.multiple")] = PATCH_SIZE


@dataclass(frozen=True)
class ServedRequests:
    """The requests that a bundle serves.

    Attributes:
        views: view counts of one call.
        sizes: ``AnySize``, or the (width, height) pairs that were built.
        chunks: how many views a stage takes at once; one where it is not named. The aggregator takes all views.
    """

    views: Annotated[Range, Bounds(1, MAX_VIEWS)]
    sizes: AnySize | tuple[tuple[Side, Side], ...]
    chunks: Mapping[Annotated[str, OneOf(CHUNKED_STAGES)], Annotated[int, Bounds(1, MAX_VIEWS)]] = field(
        default_factory=dict
    )

    def check_fields(self, fail: Fail) -> None:
        """Refuse an empty or repeated list of sizes."""
        if isinstance(self.sizes, tuple) and (not self.sizes or len(set(self.sizes)) != len(self.sizes)):
            fail("sizes", "must name at least one size, and none twice")

    def check(self, views: int, height: int, width: int) -> None:
        """Refuse a request of ``views`` images of ``height`` x ``width`` pixels that the bundle was not built for.

        Raises:
            ImageSizeError: height or width is not a positive multiple of 14.
            ProfileError: the view count or the size is outside the profile; the message names the build option.
        """
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % PATCH_SIZE:
                fix = "resize the images, for example with preprocess_inputs"
                raise ImageSizeError(f"image {name} {side} is not a positive multiple of {PATCH_SIZE}; {fix}")
        self.check_views(views)
        if not self._covers(height, width):
            raise ProfileError(
                f"images of {width}x{height} (width x height) are outside the sizes of this bundle "
                f"({self.sizes_in_words}); build it with --resolution {width}x{height}, or resize the images"
            )

    def check_views(self, views: int) -> None:
        """The part of :meth:`check` that needs no image: the number of views."""
        built = self.views
        if views < 1:
            raise ProfileError("a call needs at least 1 view; pass one or more views")
        if not built.min <= views <= built.max:
            low, high = min(views, built.min), max(views, built.max)
            raise ProfileError(
                f"{_count(views)} in one call, but this bundle was built for {built.min} to {built.max}; "
                f"build it with --views {low}:{built.opt}:{high}, or pass a number of views in that range"
            )

    def nearest_size(self, aspect_ratio: float) -> tuple[int, int] | None:
        """The built (width, height) whose width / height is nearest, or None where MapAnything's own table applies."""
        if isinstance(self.sizes, AnySize):
            return None
        return min(self.sizes, key=lambda size: (abs(size[0] / size[1] - aspect_ratio), size))

    def _covers(self, height: int, width: int) -> bool:
        if isinstance(self.sizes, AnySize):
            known = self.sizes
            return all(known.min <= side <= known.max and side % known.multiple == 0 for side in (height, width))
        return (width, height) in self.sizes

    @property
    def sizes_in_words(self) -> str:
        """The sizes that are served, for messages."""
        if isinstance(self.sizes, AnySize):
            return f"sides from {self.sizes.min} to {self.sizes.max} in steps of {self.sizes.multiple}"
        return ", ".join(f"{width}x{height}" for width, height in self.sizes)


def rounded_to_patches(width: int, height: int) -> tuple[int, int]:
    """The nearest (width, height) whose sides are positive multiples of the patch size."""
    return max(1, round(width / PATCH_SIZE)) * PATCH_SIZE, max(1, round(height / PATCH_SIZE)) * PATCH_SIZE


def _count(views: int) -> str:
    return "1 view" if views == 1 else f"{views} views"
