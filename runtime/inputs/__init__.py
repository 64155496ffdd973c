"""Images, depth, cameras and poses: read, checked, resized, and prepared for the network."""
