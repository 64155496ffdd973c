"""MapAnything as a deployable engine: :mod:`mapengine.runtime` runs bundles, :mod:`mapengine.export` builds them.

The packages below this one are the folders beside it; ``package-dir`` in pyproject.toml says which.
"""

from importlib.metadata import version

__version__ = version("mapengine")
