"""Where an engine loses accuracy or time."""
