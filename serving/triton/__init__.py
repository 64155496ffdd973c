"""An engine behind NVIDIA's Triton Inference Server: the model repository, its two models, and a start without a
container."""
