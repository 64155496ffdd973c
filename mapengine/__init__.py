"""MapAnything as a deployable engine: :mod:`mapengine.runtime` runs bundles, :mod:`mapengine.export` builds them.

The packages below this one are the folders beside it; ``package-dir`` in pyproject.toml says which.
"""

from importlib.metadata import version
from pkgutil import extend_path

# In the folder of a checkout Python finds this file first, also where the other packages are those of a wheel.
__path__ = extend_path(__path__, __name__)

__version__ = version("mapengine")
