"""A GPU through the CUDA driver: memory and streams, the stages of a bundle on it, and our own kernels between them."""
