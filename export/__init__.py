"""From a MapAnything checkpoint to an engine bundle; needs PyTorch and ONNX.

from mapengine.export import load_model, build_engine

model = load_model("preset:tiny")
build_engine(model, "build/engine")
"""

from .build import build_engine
from .onnx_export import export_stages
from .reference import MapAnything, load_model

__all__ = ["MapAnything", "build_engine", "export_stages", "load_model"]
