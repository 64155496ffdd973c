"""MapAnything as a deployable engine: :mod:`mapengine.runtime` runs bundles, :mod:`mapengine.export` builds them.

The packages below this one are the folders beside it; ``package-dir`` in pyproject.toml says which.
"""

import os
import sys
from itertools import pairwise

# `python -m mapengine` puts the working folder before everything else, and what lies there, such as a numpy.py, is not
# for it to run. This is the first line of ours that runs then; "-m" stands for the program until Python has found it.
_is_program = any(option == "-m" and name.partition(".")[0] == "mapengine" for option, name in pairwise(sys.orig_argv))
if sys.argv[:1] == ["-m"] and _is_program and sys.path[0] == os.getcwd():
    del sys.path[0]

from importlib.metadata import version  # noqa: E402

__version__ = version("mapengine")
