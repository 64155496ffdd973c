"""``python -m mapengine.serving.triton REPOSITORY [OPTION OF TRITONSERVER ...]``: start a server without a container.

python -m mapengine.serving.triton build/triton --http-port=9000 --model-control-mode=explicit --load-model=*
"""

from __future__ import annotations

import sys

from mapengine.runtime.errors import MapEngineError

from .server import serve


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        return serve(arguments[0], arguments[1:])
    except MapEngineError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
