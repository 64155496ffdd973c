# The runtime and the plan builder for Jetson, without PyTorch. Not measured: see jetson.md.
#
# BASE is an image with CUDA, TensorRT and its Python package for the JetPack on the device (6.2: TensorRT 10.3).
ARG BASE
FROM ${BASE}

# 12.6 for JetPack 6, 13.0 for JetPack 7: the bindings follow the CUDA version of the driver.
ARG CUDA=12.6

WORKDIR /opt/mapengine
COPY pyproject.toml README.md LICENSE ./
COPY calibration calibration
COPY cli cli
COPY export export
COPY kernels kernels
COPY package package
COPY runtime runtime
COPY serving serving
# TensorRT's Python package comes from the image and is not listed: one that pip finds would be for another driver.
RUN python3 -m pip install --no-cache-dir ".[compile]" "cuda-bindings==${CUDA}.*"

# The node of ROS 2, where the image has ROS 2 (set up in /opt/ros). Not run.
COPY ros2 ros2
RUN if [ -d /opt/ros ]; then python3 -m pip install --no-cache-dir --no-deps ./ros2/mapengine_ros; fi

WORKDIR /data
ENTRYPOINT ["mapengine"]
