"""The README of a model repository."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from mapengine.runtime.backend_table import BACKENDS_BY_NAME
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.sizes import gigabytes

from .settings import Limits
from .tensors import FILES, GEOMETRY, IMAGES, RESULTS, Tensor

README = "README.md"
CONTAINER = "nvcr.io/nvidia/tritonserver:25.10-py3"
"""The container that the README names; any newer one has the same protocol."""

_TEXT = """\
# {name}: MapAnything behind Triton

Made by `mapengine triton` {version}. One request is one scene: V views and what is known of them go in, the keys of
MapAnything's `infer` come out, and only those that are asked for are computed. The engine is in this folder ({model},
{precision}, for {backends}), so that it can be moved as a whole. It serves {sizes}.

| model | takes | at most |
|---|---|---|
| `{name}` | `images`: arrays of a size that the bundle serves | {array_limits} |
| `{files}` | `files`: JPEG or PNG files of any size, which it reads and resizes | {file_limits} |

## Start it in NVIDIA's container

Make a wheel of mapengine (`pip wheel --no-deps .` in a checkout), and beside it a file `Dockerfile`:

```dockerfile
FROM {container}
COPY mapengine-*.whl /tmp/
RUN pip install "$(ls /tmp/mapengine-*.whl)[{extra}]"
```

```sh
docker build -t mapengine-triton .
docker run --rm {gpus}--shm-size=2g -p 8000-8002:8000-8002 -v "$PWD":/models mapengine-triton \\
    python3 -m mapengine.serving.triton /models
```

The second command is for this folder. It starts the container's `tritonserver`, loads what is written into the folder,
and loads a model again whose process was killed, which Triton itself has not done since 24.06. Tensors pass between
server and models in shared memory, of which a container has 64 MB unless `--shm-size` says more.

## Start it without

On Linux with Python 3.10 to 3.12, in an environment of its own (the server needs NumPy 1.26):

```sh
pip install 'mapengine[{extra},triton-server]'
python -m mapengine.serving.triton .
```

Options of `tritonserver` may follow. HTTP is at port 8000, gRPC at 8001, metrics at 8002.

## Ask it

```sh
pip install 'tritonclient[http]'
```

```python
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("localhost:8000")
files = [open(path, "rb").read() for path in ("a.jpg", "b.jpg")]
request = triton.InferInput("files", [len(files)], "BYTES")
request.set_data_from_numpy(np.array(files, dtype=object))
wanted = [triton.InferRequestedOutput(name) for name in ("pts3d", "mask", "camera_poses")]
answer = client.infer("{files}", [request], outputs=wanted, parameters={{"apply_confidence_mask": True}})
print(answer.as_numpy("pts3d").shape)
```

Parameters of a request are options of `infer`, by their names; a number may be text. A request that cannot be answered
gets one sentence, and the server goes on.

## What goes in

The first axis is always V, in which view 0 is the reference. Everything but `images` or `files` may be left out.

{inputs}

For `{files}`, geometry belongs to the upright image, and `ray_directions`, `depth_z` and `mask` need files of one size.

## What comes out

{outputs}

## Limits

`max_views`, `max_pixels` (of one image, before it is resized) and `max_bytes` (of all tensors of a request) are
parameters in `{name}/config.pbtxt` and `{files}/config.pbtxt`, and so are `backend` and `threads`. Change them there
and load the model again. `mapengine triton` does not write over a file that was changed.
"""


def readme(bundle: Bundle, name: str, files: str, arrays: Limits, encoded: Limits) -> str:
    """Return the README for the models ``name`` and ``files``, whose limits are ``arrays`` and ``encoded``."""
    manifest = bundle.manifest
    backends = [info.name for info in manifest.backends]
    spec = BACKENDS_BY_NAME[backends[0]]
    return _TEXT.format(
        name=name,
        files=files,
        version=metadata.version("mapengine"),
        model=manifest.model.id,
        precision=manifest.precision,
        backends=" and ".join(backends),
        sizes=manifest.requests.sizes_in_words,
        extra=spec.extra,
        gpus="--gpus all " if spec.on_gpu else "",
        container=CONTAINER,
        array_limits=_limits(arrays),
        file_limits=_limits(encoded),
        inputs=_table((IMAGES, FILES, *GEOMETRY)),
        outputs=_table(RESULTS),
    )


def _limits(limits: Limits) -> str:
    return f"{limits.max_views} views, {limits.max_pixels} pixels an image, {gigabytes(limits.max_bytes)}"


def _table(tensors: Sequence[Tensor]) -> str:
    rows = [f"| `{t.name}` | {t.dtype} | ({', '.join(map(str, t.axes))}) | {t.about} |" for t in tensors]
    return "\n".join(["| tensor | type | shape | |", "|---|---|---|---|", *rows])
