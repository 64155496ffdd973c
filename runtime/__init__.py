"""Run engine bundles with NumPy and one inference backend; PyTorch is never imported.

In use:

    from mapengine.runtime import Engine

    engine = Engine.load("build/engine")
    scene = engine.reconstruct(["a.jpg", "b.jpg"])
    scene.save("scene.glb")
"""

from .bundle.manifest import Manifest
from .engine import Engine
from .errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    ImageReadError,
    InputError,
    MapEngineError,
    OutputError,
    ParityError,
    ProfileError,
)
from .inputs.encoded import EncodedView
from .inputs.formats.view_files import ReadOptions
from .inputs.preprocess import load_images, preprocess_inputs
from .mapping.mapper import Mapper
from .options import InferOptions
from .outputs.formats.options import SaveOptions
from .outputs.scene import Scene
from .outputs.view_files import load_view, save_views
from .session import Session

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "BundleError",
    "EncodedView",
    "Engine",
    "ImageReadError",
    "InferOptions",
    "InputError",
    "Manifest",
    "MapEngineError",
    "Mapper",
    "OutputError",
    "ParityError",
    "ProfileError",
    "ReadOptions",
    "SaveOptions",
    "Scene",
    "Session",
    "load_images",
    "load_view",
    "preprocess_inputs",
    "save_views",
]
