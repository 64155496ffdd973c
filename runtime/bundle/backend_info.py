"""The backends that serve a bundle: which versions and devices of each."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DeviceError, VersionError
from ..typed_json.codec import Fail


def parse_version(version: str) -> tuple[int, ...]:
    """The leading dotted integers of a version: ``2026.4.1-22222-releases`` gives (2026, 4, 1)."""
    numbers: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > 9:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


@dataclass(frozen=True)
class BackendInfo:
    """A backend that serves the bundle.

    Attributes:
        version: the one that the bundle was built and verified with.
        minimum_version, maximum_version: inclusive bounds; a bound of ``10.13`` covers every 10.13.x, None is no bound.
            A plan that only its own version can read has both equal.
        compute_capability: devices that a plan was built for, such as ``("8.7",)``; None means any device.
    """

    name: str
    version: str
    minimum_version: str
    maximum_version: str | None = None
    compute_capability: tuple[str, ...] | None = None

    def check_fields(self, fail: Fail) -> None:
        """Refuse versions that cannot be compared."""
        for name in ("version", "minimum_version", "maximum_version"):
            version = getattr(self, name)
            if version is not None and not parse_version(version):
                fail(name, "must start with a number, such as 1.22")

    def check_version(self, installed: str) -> None:
        """Raise ``VersionError`` unless the ``installed`` version of the backend lies within the bounds."""
        found, low = parse_version(installed), parse_version(self.minimum_version)
        if found + (0,) * (len(low) - len(found)) < low:
            raise VersionError(
                f"this bundle needs {self.name} {self.minimum_version} or newer, and {installed} is installed; "
                f"upgrade {self.name} or build the bundle again here"
            )
        high = parse_version(self.maximum_version) if self.maximum_version is not None else None
        if high is not None and found[: len(high)] > high:
            raise VersionError(
                f"this bundle needs {self.name} {self.maximum_version} or older, and {installed} is installed; "
                f"install that version or build the bundle again here"
            )

    def check_device(self, compute_capability: str | None) -> None:
        """Raise ``DeviceError`` unless the plan was built for a device of this compute capability."""
        if self.compute_capability is not None and compute_capability not in self.compute_capability:
            raise DeviceError(
                f"this bundle was built for compute capability {', '.join(self.compute_capability) or 'none'}, and "
                f"this device has {compute_capability or 'none'}; build the bundle again on this device"
            )
