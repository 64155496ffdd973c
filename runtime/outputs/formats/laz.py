"""Points as LAZ, the packed form of LAS 1.4 (ASPRS): integers of a stated precision, 16-bit colours, confidence."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np

from ...errors import warn
from ...writing.files import atomic_write
from ...writing.recognition import marker
from ..scene_arrays import SceneArrays, selected_pixels
from .options import SaveOptions

_KIND = "point cloud"
_POINT_FORMAT = 7  # coordinates, colours, the number of the source
_MOST_STEPS = 2**31 - 2
_FEW_STEPS = 100
_SOFTWARE = 32  # bytes of the field for the program's name


def write_laz(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write the points with the scene's axes and unit.

    A coordinate is a whole number of steps of ``laz_precision`` from an offset. A point's ``point_source_id`` is the
    number of its view, from 1, and there is a record of the user ``mapengine`` of that number with the view's name.
    Confidence is an extra dimension, float32. A path that ends with ``.las`` is not packed.

    Raises:
        OutputError: the file could not be written.
    """
    laspy = importlib.import_module("laspy")
    keep = selected_pixels(scene, options.max_points, options.confidence_percentile)
    points = scene.points[keep].astype(np.float64)
    low = points.min(axis=0) if len(points) else np.zeros(3)
    extent = float(np.ptp(points, axis=0).max()) if len(points) else 0.0
    header = laspy.LasHeader(version="1.4", point_format=_POINT_FORMAT)
    header.global_encoding.wkt = True  # point formats from 6 on demand it, even where there is no map projection
    header.generating_software = marker(_KIND)[:_SOFTWARE]
    header.scales = np.full(3, _fitting(options.laz_precision, extent))
    header.offsets = np.floor(low)
    header.add_extra_dim(laspy.ExtraBytesParams("confidence", np.float32, "higher is more certain"))
    for number, name in enumerate(scene.names, 1):
        if number < 2**16:
            record = name.encode(errors="replace")[: 2**16 - 1]
            header.vlrs.append(laspy.VLR("mapengine", number, "name of the view", record))
    cloud = laspy.LasData(header)
    cloud.points = laspy.ScaleAwarePointRecord.zeros(len(points), header=header)
    cloud.x, cloud.y, cloud.z = points.T
    cloud.red, cloud.green, cloud.blue = scene.colors[keep].T.astype(np.uint16) * 257  # 255 becomes 65535
    cloud.confidence = scene.confidence[keep]
    cloud.point_source_id = np.nonzero(keep)[0] % (2**16 - 1) + 1
    cloud.return_number = cloud.number_of_returns = np.ones(len(points), np.uint8)
    with atomic_write(path, _KIND) as temporary, temporary.open("wb") as file:
        cloud.write(file, do_compress=path.suffix.lower() != ".las", laz_backend=laspy.LazBackend.Lazrs)


def _fitting(precision: float, extent: float) -> float:
    """The precision, or one that is so many times ten coarser that 32 bits hold the extent, which is then said.

    That few steps are left of the extent, as in a world that is no metre across, is said, too.
    """
    if 0 < extent < _FEW_STEPS * precision:
        warn(
            f"the points extend over {extent:.4g} only, and their coordinates are saved in steps of {precision:g}; "
            "give a smaller laz_precision"
        )
    if extent <= _MOST_STEPS * precision:
        return precision
    fitting = precision * 10.0 ** math.ceil(math.log10(extent / (_MOST_STEPS * precision)))
    warn(f"the points extend over {extent:.4g} m: their coordinates are saved to {fitting:g} m, not to {precision:g} m")
    return fitting
