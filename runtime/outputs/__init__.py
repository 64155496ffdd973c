"""Scenes, and the files that they are saved as."""
