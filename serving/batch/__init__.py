"""Many scenes: reconstructed by several processes or a Ray cluster, each result whole or not at all, and none twice."""
