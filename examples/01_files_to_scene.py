"""From image files to a scene that any viewer opens.

python examples/01_files_to_scene.py build/engine build/samples build/scene.ply
"""

import sys

from mapengine.runtime import Engine


def main(bundle: str, folder: str, out: str) -> None:
    engine = Engine.load(bundle)
    print(f"{engine.manifest.model.id} in {engine.manifest.precision} with {engine.where}")

    scene = engine.reconstruct(folder)  # a folder, or a list of files, Pillow images or arrays

    for name, depth, mask, pose in zip(scene.names, scene.depth, scene.mask, scene.poses, strict=True):
        print(f"{name}: {depth[mask].mean():.2f} m on average, camera at {pose[:3, 3].round(2)}")
    print(f"Wrote {scene.save(out)} with {scene.mask.sum()} points")


if __name__ == "__main__":
    main(*sys.argv[1:])
