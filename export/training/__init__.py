"""Training of small networks on rendered scenes: ``python -m mapengine.export.training``."""
