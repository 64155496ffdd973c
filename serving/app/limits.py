"""How much people may upload, and the sentences that refuse more."""

from __future__ import annotations

from dataclasses import dataclass

from mapengine.runtime.errors import InputError
from mapengine.runtime.system.sizes import gigabytes


@dataclass(frozen=True)
class UploadLimits:
    """What one visit may upload, and how many visits there may be.

    Attributes:
        files: Most files that somebody has uploaded at a time.
        size: Most bytes of all files that somebody has uploaded at a time.
        pixels: Most pixels of an image, or of a frame of a video.
        visits: Most pages that are open at a time.
    """

    files: int = 200
    size: int = 1_000_000_000
    pixels: int = 50_000_000
    visits: int = 8

    def check_count(self, name: str, files: int) -> None:
        """Refuse a further file where there are ``files`` (InputError)."""
        if files >= self.files:
            raise InputError(f"{name}: there are {files} files, and at most {self.files} are taken; remove some first")

    def check_size(self, name: str, size: int, there: int) -> None:
        """Refuse a file of ``size`` bytes where there are ``there`` bytes (InputError)."""
        if there + size > self.size:
            besides = f" besides {gigabytes(there)} that are there" if there else ""
            raise InputError(
                f"{name}: has {gigabytes(size)}{besides}, and at most {gigabytes(self.size)} are taken in all; upload "
                "less"
            )

    def check_pixels(self, name: str, size: tuple[int, int]) -> None:
        """Refuse an image or a frame of ``size`` = (W, H) (InputError)."""
        if size[0] * size[1] > self.pixels:
            raise InputError(
                f"{name}: has {size[0]}x{size[1]} pixels, and at most {self.pixels / 1e6:.3g} million are taken; make "
                "it smaller"
            )
