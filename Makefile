# mapengine: from a MapAnything checkpoint to an engine bundle. `make help` lists the targets.

PYTHON     ?= python3
# Anything that pip accepts: another version, or a wheel of your platform (Jetson).
TORCH      ?= torch==2.13.0
EXTRAS     ?= cpu,openvino,rtx,export,kernels,viz,ray,docs,dev

MODEL      ?= preset:nano
PRECISION  ?= fp32
BACKEND    ?= onnxruntime
VIEWS      ?= 1:4:32
# Nothing: all sizes, or for a preset the ones that it was trained at.
RESOLUTION ?=
ATTENTION  ?= auto
TARGET     ?=
# A file of `mapengine calibrate`, for PRECISION=int8 or fp8; without it the build calibrates with rendered views.
CALIBRATION ?=
# 1: with PRECISION=int8, weights alone are in 8 bits and nothing is calibrated.
WEIGHTS_ONLY ?=
REVISION   ?=
OUT        ?= build/engine
SAMPLES    ?= build/samples
DEMO       ?= build/demo

KERNELS    ?=
PROFILE    ?=

SOAK_SECONDS ?= 600

WORKERS    ?= 2
PYTEST     ?=

GPU_OPTIONAL = $(if $(filter tensorrt% onnxruntime-cuda,$(BACKEND)),--device optional)

BIN        := .venv/bin
STAMP      := .venv/.installed
PACKAGES   := calibration cli export kernels runtime serving
TEST       := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: help setup engine verify kernels profile viewer soak browser triton ros ros-test check fast-test test gpu-test lint typecheck docs clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## Show the targets and the variables of `make engine`
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  make engine MODEL=$(MODEL) PRECISION=$(PRECISION) BACKEND=$(BACKEND) VIEWS=$(VIEWS) RESOLUTION=$(RESOLUTION) OUT=$(OUT)'

setup: $(STAMP)  ## Install everything into .venv (the other targets do this on their own)

# torch goes first and alone: otherwise another package's looser bound chooses its version.
$(STAMP): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	@touch $@

engine: $(STAMP)  ## Export and build MODEL into the bundle OUT, check it, and reconstruct a rendered scene with it
	$(BIN)/mapengine build "$(MODEL)" "$(OUT)" --precision "$(PRECISION)" --backend "$(BACKEND)" --views "$(VIEWS)" \
		--attention "$(ATTENTION)" $(if $(RESOLUTION),--resolution "$(RESOLUTION)") \
		$(if $(REVISION),--revision "$(REVISION)") $(if $(TARGET),--target "$(TARGET)") \
		$(if $(CALIBRATION),--calibration "$(CALIBRATION)") $(if $(filter 1,$(WEIGHTS_ONLY)),--weights-only)
	$(BIN)/mapengine verify "$(OUT)" $(GPU_OPTIONAL)
	$(BIN)/mapengine samples "$(SAMPLES)"
	$(if $(filter 1 2 3 4 5 6 7 8,$(firstword $(subst :, ,$(VIEWS)))),\
		$(BIN)/mapengine demo "$(OUT)" --out "$(DEMO)" $(GPU_OPTIONAL),\
		@echo 'No demonstration: a rendered scene has at most 8 views, and VIEWS=$(VIEWS) takes more')
	@echo
	@echo 'Try it on images: $(BIN)/mapengine run $(OUT) $(SAMPLES) --out scene.html --preview scene.png'

verify: $(STAMP)  ## Check the bundle OUT on this machine
	$(BIN)/mapengine verify "$(OUT)"

kernels: $(STAMP)  ## Compile the attention kernels for every GPU into build/kernels (KERNELS="--arch 87 --head-dim 64" for some)
	$(BIN)/python -m mapengine.kernels compile $(KERNELS)

profile: $(STAMP)  ## Time the bundle OUT beside PyTorch, from files to a scene (PROFILE="--views 1,4 --baselines none" passes options on)
	@test -f "$(OUT)/manifest.json" || $(MAKE) engine
	$(BIN)/mapengine profile "$(OUT)" $(PROFILE) --json build/profile.json --markdown build/profile.md --plot build/profile.png

viewer:  ## Build the page that scenes are shown in, runtime/outputs/viewer/page.html, from its source/ (needs Node.js; its result is kept in the repository)
	cd runtime/outputs/viewer/source && npm ci --ignore-scripts --no-audit --no-fund && npm run build

soak: $(STAMP)  ## Use engines for ten minutes in every way at once; fails if a result differs or anything grows (SOAK_SECONDS=3600 for an hour)
	$(BIN)/python benchmarks/soak.py --seconds $(SOAK_SECONDS) --json benchmarks/results/soak.json

gpu-test: $(STAMP)  ## Compare every installed GPU backend with PyTorch on this machine's GPU, and write benchmarks/results/gpu_test.json
	$(BIN)/python benchmarks/gpu_test.py --model "$(MODEL)" --json benchmarks/results/gpu_test.json

check: $(STAMP)  ## Check style, formatting, types and layout, and run the fast tests: what to run between edits
	@$(MAKE) --no-print-directory -j 2 lint fast-test

fast-test: $(STAMP)  # The tests that are not marked as slow.
	$(TEST) -m 'not slow' $(PYTEST)

test: $(STAMP)  ## Run all tests (PYTEST="-k name" passes options on, WORKERS=n runs n at a time)
	$(TEST) $(PYTEST)

# Without a network there may be none: then the tests of pages are skipped, and say so.
browser: $(STAMP)  ## Install a Chromium for the tests of pages, if there is none
	@$(BIN)/python tests/chromium.py || timeout 300 $(BIN)/python -m playwright install --with-deps chromium || \
		timeout 300 $(BIN)/python -m playwright install chromium || \
		{ test "$$(id -u)" = 0 && timeout 300 apt-get install --quiet --yes chromium; } || \
		echo 'No Chromium: the tests of pages are skipped'

# In an environment of its own; where its packages cannot be had the tests are skipped, and it says so.
triton: $(STAMP)  ## Install a Triton server into .venv-triton, and test the models of `mapengine triton` behind it
	$(BIN)/python -m tests.triton_server

# The wheels of ROS 2 are for Python 3.11. Without it, or without a network, there may be none: then the tests of the node
# are skipped, and say so. Whatever goes wrong afterwards is a failure.
ros: $(STAMP)  ## Run the tests of the ROS 2 node, in an environment of its own with ROS 2 from PyPI (.venv-ros)
	@if $(MAKE) --no-print-directory .venv-ros/.installed; then $(MAKE) --no-print-directory ros-test; else \
		echo 'No ROS 2 for Python 3.11 from PyPI: the tests of the node are skipped'; fi

ROS_PYTHON ?= $(firstword $(foreach python,$(PYTHON) python3.11,$(shell $(python) -c \
	'import sys; sys.version_info[:2] == (3, 11) and print(sys.executable)' 2>/dev/null)))

.venv-ros/.installed: ros2/requirements.txt
	@test -n "$(ROS_PYTHON)"
	@"$(ROS_PYTHON)" -m venv --clear .venv-ros
	@timeout 300 .venv-ros/bin/python -m pip install --quiet -r $<
	@touch $@

ros-test: $(STAMP) .venv-ros/.installed
	@.venv-ros/bin/python -m pip install --quiet -e '.[cpu]'
	@.venv-ros/bin/python -m pip install --quiet --no-deps --force-reinstall ./ros2/mapengine_ros
	$(BIN)/mapengine build preset:nano build/ros/engine
	.venv-ros/bin/python -m pytest --confcutdir tests/ros2/node tests/ros2/node $(PYTEST)

lint: $(STAMP) typecheck  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders are packages inside `mapengine` only once installed, so mypy gets a tree of links to them.
typecheck: $(STAMP)
	@rm -rf build/typecheck && mkdir -p build/typecheck/mapengine
	@for package in $(PACKAGES); do ln -s "../../../$$package" "build/typecheck/mapengine/$$package"; done
	@ln -s ../../../package/__init__.py ../../../package/__main__.py build/typecheck/mapengine/
	MYPYPATH=build/typecheck:ros2/mapengine_ros $(BIN)/mypy -p mapengine -p mapengine_ros

docs: $(STAMP)  ## Build the documentation strictly into build/site
	$(BIN)/python docs/make_site.py

clean:  ## Remove build outputs and caches (.venv stays)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(PACKAGES) package ros2 tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
