"""Bundles of ONNX stages and of TensorRT plans, and the parity that they are written with."""
