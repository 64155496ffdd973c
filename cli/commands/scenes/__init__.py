"""Commands that make scenes with an engine, and images to try one with."""
