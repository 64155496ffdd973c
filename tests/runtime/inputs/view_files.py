"""One small view with all that is known of it."""

from __future__ import annotations

import numpy as np

K = np.array([[50, 0, 27.5], [0, 50, 20.5], [0, 0, 1]], dtype=np.float32)  # of an image of 56x42
POSE = np.array([[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]], dtype=np.float32)
DEPTH = np.linspace(1, 4, 42 * 56, dtype=np.float32).reshape(42, 56)
IMAGE = np.random.default_rng(0).integers(0, 256, (42, 56, 3), dtype=np.uint8)
