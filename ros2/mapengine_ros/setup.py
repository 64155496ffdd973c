"""The ament_python package; colcon and pip build it."""

from glob import glob

from setuptools import setup

NAME = "mapengine_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="Depth, poses and points of what cameras see, by a mapengine engine",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*.yaml")),
        (f"share/{NAME}/rviz", glob("rviz/*.rviz")),
    ],
    install_requires=["setuptools", "mapengine"],
    zip_safe=False,
    entry_points={"console_scripts": [f"mapengine_node = {NAME}.node:main"]},
)
