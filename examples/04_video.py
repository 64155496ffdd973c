"""A video, frame by frame: every image is encoded once, and keyframes and the latest frames are seen together.

python examples/04_video.py build/engine build/samples build/video.ply
"""

import sys
import time
from pathlib import Path

from PIL import Image

from mapengine.runtime import Engine, Scene, Session


def main(bundle: str, folder: str, out: str) -> None:
    engine = Engine.load(bundle)
    session = Session(engine, window=2, keyframe_every=3)

    for path in sorted(Path(folder).glob("*.png")):
        began = time.perf_counter()
        [view] = engine.preprocess([{"img": Image.open(path)}])
        frame = session.add(view)
        predictions = session.infer()
        position = predictions[-1]["camera_poses"][0, :3, 3]
        took = 1000 * (time.perf_counter() - began)
        print(f"frame {frame} with {session.frames}: camera at {position.round(2)}, {took:.0f} ms")

    scene = Scene.from_predictions(predictions, [f"frame {frame}" for frame in session.frames])
    print(f"Wrote {scene.save(out)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
