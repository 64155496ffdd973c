"""Recordings as sequences: read a frame at a time, the same as in scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapengine.calibration.evaluation import load_rgbd
from mapengine.calibration.sequences import RecordedSequence
from mapengine.runtime import ImageReadError
from mapengine.runtime.errors import ImageSizeError, InputError

from ...seven_scenes import write_seven_scenes


def test_a_recording_is_read_a_frame_at_a_time(tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path / "recording", views=5)
    scene = load_rgbd(folder, (56, 42))[0]
    sequence = RecordedSequence(folder, (56, 42))
    assert len(sequence) == 5
    frames = iter(sequence)
    for index in range(4):
        frame = next(frames)
        np.testing.assert_array_equal(frame.image, scene.images[index])
        np.testing.assert_array_equal(frame.depth_z, scene.depth_z[index])
        np.testing.assert_array_equal(frame.intrinsics, scene.intrinsics[index])
        np.testing.assert_array_equal(frame.pose, scene.poses[index])
    # The last one is not read before it is its turn.
    (folder / "frame-000004.color.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match="frame-000004"):
        next(frames)


def test_some_frames_of_a_recording(tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path / "recording", views=8)
    every = RecordedSequence(folder, (28, 28), frames=3, every=2)
    assert len(every) == 3
    poses = [frame.pose for frame in RecordedSequence(folder, (28, 28))]
    np.testing.assert_array_equal([frame.pose for frame in every], poses[:6:2])


def test_refusals(tmp_path: Path) -> None:
    folder = write_seven_scenes(tmp_path / "recording", views=3)
    with pytest.raises(InputError, match="recording: 2 frames are no sequence; give at least three"):
        RecordedSequence(folder, (56, 42), every=2)
    with pytest.raises(ImageSizeError, match="57x42"):
        RecordedSequence(folder, (57, 42))
    with pytest.raises(InputError, match="no such folder"):
        RecordedSequence(tmp_path / "missing")
