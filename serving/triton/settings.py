"""What the parameters of a model's configuration say: its limits, and how the engine is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mapengine.runtime.errors import InputError

FILE_PIXELS = 64_000_000
"""Of an image file, unless another limit is given: more than any telephone takes."""
FILE_BYTES = 256 * 2**20
"""Of a request of files, unless another limit is given."""


@dataclass(frozen=True)
class Limits:
    """What one request may bring.

    Attributes:
        max_views: views. max_pixels: of one image, before it is resized. max_bytes: of all tensors together.
    """

    max_views: int
    max_pixels: int
    max_bytes: int

    def check_views(self, views: int) -> None:
        """Refuse more views than there may be (InputError)."""
        if views > self.max_views:
            raise InputError(
                f"the request has {views} views, and this model takes at most {self.max_views}; give fewer views, or "
                "raise max_views in its config.pbtxt"
            )

    def check_pixels(self, width: int, height: int, where: str) -> None:
        """Refuse an image of too many pixels (InputError)."""
        if width * height > self.max_pixels:
            raise InputError(
                f"{where} has {width}x{height} pixels, and this model takes at most {self.max_pixels} of an image; "
                "give a smaller one, or raise max_pixels in its config.pbtxt"
            )

    def check_bytes(self, size: int) -> None:
        """Refuse a request of too many bytes (InputError)."""
        if size > self.max_bytes:
            raise InputError(
                f"the request has {size} bytes, and this model takes at most {self.max_bytes}; give fewer or smaller "
                "views, or raise max_bytes in its config.pbtxt"
            )


@dataclass(frozen=True)
class Settings:
    """The parameters of a model.

    Attributes:
        limits: of a request.
        backend: that runs the engine, or ``auto``.
        threads: processor threads of one instance; None: its share of those that there are.
        engine_model: name of the model that has the engine, for the one that takes files.
    """

    limits: Limits
    backend: str = "auto"
    threads: int | None = None
    engine_model: str = ""

    def parameters(self) -> dict[str, str]:
        """Return them as a configuration holds them; what is not set is not there."""
        limits = {field.name: str(getattr(self.limits, field.name)) for field in fields(Limits)}
        engine = {} if self.engine_model else {"backend": self.backend, "threads": str(self.threads or "auto")}
        return limits | engine | ({"engine_model": self.engine_model} if self.engine_model else {})

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Settings:
        """Return those of a model's configuration, as Triton hands it to a model.

        Raises:
            InputError: a parameter that is missing or no positive number.
        """
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        threads = given.get("threads", "auto")
        return cls(
            Limits(*(_positive(given, field.name) for field in fields(Limits))),
            given.get("backend", "auto"),
            None if threads == "auto" else _positive(given, "threads"),
            given.get("engine_model", ""),
        )


def _positive(given: Mapping[str, str], name: str) -> int:
    text = given.get(name, "")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(f"config.pbtxt: the parameter {name} is {text!r}; give a positive whole number")
    return int(text)
