"""A video of any length becomes one map: frames go in one by one, poses and depth come out window by window.

python examples/06_map.py build/engine build/samples build/map
"""

import sys

from mapengine.runtime import Engine, Mapper
from mapengine.runtime.inputs.sources import open_views


def main(bundle: str, video: str, folder: str) -> None:
    engine = Engine.load(bundle)
    mapper = Mapper(engine, window=4, overlap=2, folder=folder)
    for view in open_views(video):
        for frame in mapper.add(engine.preprocess([view])[0], view.name):
            print(f"frame {frame.number} of submap {frame.submap}: camera at {frame.pose[:3, 3].round(2)}")
    for frame in mapper.finish():
        print(f"frame {frame.number} of submap {frame.submap}: camera at {frame.pose[:3, 3].round(2)}")
    print(f"{len(mapper.poses)} frames in {folder}, {len(mapper.breaks)} breaks, {len(mapper.loops)} loops")


if __name__ == "__main__":
    main(*sys.argv[1:])
