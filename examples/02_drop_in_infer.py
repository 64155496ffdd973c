"""The engine in place of MapAnything's PyTorch model: the same call, keys and shapes, as NumPy arrays.

python examples/02_drop_in_infer.py build/engine build/samples

Written for upstream, only the two lines with comments differ.
"""

import sys

from mapengine.runtime import Engine, load_images  # from mapanything.utils.image import load_images


def main(bundle: str, folder: str) -> None:
    model = Engine.load(bundle)  # MapAnything.from_pretrained("facebook/map-anything-apache").to(device)

    size = model.manifest.requests.nearest_size(5 / 4)  # None where the bundle takes every size of upstream's table
    views = load_images(folder) if size is None else load_images(folder, resize_mode="fixed_size", size=size)
    predictions = model.infer(
        views, memory_efficient_inference=True, use_amp=True, amp_dtype="bf16", apply_mask=True, mask_edges=True
    )

    for index, prediction in enumerate(predictions):
        points = prediction["pts3d"][prediction["mask"][..., 0]]
        translation = prediction["camera_poses"][0, :3, 3]
        print(f"view {index}: {len(points)} points in metres, camera at {translation.round(2)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
