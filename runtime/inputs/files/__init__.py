"""Files of pixels: opened without waiting for a pipe, bounded before they are decoded; the numbers of depth maps."""
