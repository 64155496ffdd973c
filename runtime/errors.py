"""Every error that mapengine raises on purpose, and how it warns.

Each message is one sentence for a person: what is wrong, where, and what to do. The classes also derive from the
built-in exception that MapAnything's own ``infer`` raises in the same situation, so code written against upstream keeps
working (``except ValueError``, ``except AssertionError``, ...).
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import traceback
import warnings
from collections.abc import Iterator

_thread = threading.local()


class MapEngineError(Exception):
    """Base class of all errors that mapengine raises on purpose."""


class InputError(MapEngineError, ValueError):
    """The views, images or options of a call are not usable."""


class ImageSizeError(InputError, AssertionError):
    """Height or width is not a multiple of the patch size (14)."""


class DataNormTypeError(InputError, AssertionError):
    """Images were normalised for another encoder."""


class ViewMismatchError(InputError, RuntimeError):
    """Views of one call differ in size or batch."""


class ImageReadError(InputError, OSError):
    """An image or depth file is missing, truncated or not an image."""


class ProfileError(InputError):
    """A request lies outside the view counts or sizes that a bundle was built for."""


class MemoryLimitError(MapEngineError, MemoryError):
    """A call would take more memory than there is; it was refused before it began."""


class OutputError(MapEngineError, OSError):
    """A result could not be written; nothing half-written is left."""


class BundleError(MapEngineError):
    """Base class of everything that is wrong with an engine bundle."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """The folder is not an engine bundle, or one of its files is missing."""


class ManifestError(BundleError, ValueError):
    """``manifest.json`` is not valid JSON or does not follow the schema."""


class IntegrityError(BundleError):
    """A file of the bundle differs from the hash in the manifest."""


class BundleReplacedError(IntegrityError):
    """The bundle was replaced, or written to, while it was being read."""


class VersionError(BundleError):
    """The bundle needs another schema, backend or tool version."""


class DeviceError(BundleError):
    """The bundle was built for another device."""


class ParityError(BundleError):
    """The outputs on this device differ from the reference outputs in the bundle."""


class BackendError(MapEngineError, RuntimeError):
    """A backend failed while it loaded or ran a stage."""


class BackendUnavailableError(BackendError, ImportError):
    """The package that a backend needs is not installed, or its device is not there."""


class CheckpointError(MapEngineError, ValueError):
    """A checkpoint lacks a tensor, has one too many, or one of the wrong shape."""


class ConfigError(MapEngineError, ValueError):
    """A model configuration is not one that mapengine supports."""


class CalibrationError(MapEngineError, ValueError):
    """A calibration file is damaged, of another model, or of another precision."""


class ModelNotFoundError(MapEngineError, FileNotFoundError):
    """A model id, folder, file or preset could not be found."""


class ExportError(MapEngineError, RuntimeError):
    """Tracing or writing an ONNX stage failed."""


def warn(message: str) -> None:
    """Issue a warning that names the line outside mapengine which led to it, however many calls lie in between."""
    kept: list[str] | None = getattr(_thread, "kept", None)
    if kept is not None:
        kept.append(message)
        return
    frames = (frame for frame, _ in traceback.walk_stack(inspect.currentframe()))
    inside = (frame.f_globals.get("__name__", "").partition(".")[0] == "mapengine" for frame in frames)
    warnings.warn(message, stacklevel=next((level for level, own in enumerate(inside, 1) if not own), 1))


@contextlib.contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """Keep the warnings of this thread for another to issue: no line outside mapengine leads to a thread of ours."""
    _thread.kept = []
    try:
        yield _thread.kept
    finally:
        _thread.kept = None


def one_line(error: BaseException) -> str:
    """The first line of a library's message, for a one-sentence error."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
