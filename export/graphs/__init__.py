"""The stages as ONNX graphs: tracing, files, and rewrites for a backend."""
