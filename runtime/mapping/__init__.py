"""Long sequences: windows of frames in one frame, places that are seen again, and the graph that closes loops."""
