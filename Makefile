# Everything a fresh machine needs: Debian or the like, Python 3.11, a C++ compiler, pip, make. `make help` lists targets.
#
# Each torch version has its own virtual environment, .venv-<version>, with a regular (not editable) install of this
# checkout: an extension built against one torch does not load into another.

TORCH ?= 2.13.0
PYTHON ?= $(or $(shell command -v python3.11),python3)
MAX_JOBS ?= 2
PYTEST_ARGS ?=
export MAX_JOBS

VENV := $(CURDIR)/.venv-$(TORCH)
BIN := $(VENV)/bin
PACKAGES := datastates elaswave oneflow_sbp
PYTHON_SOURCES := $(PACKAGES) benchmarks examples scripts tests setup.py csrc/build_core.py
CXX_SOURCES = $(shell find csrc tests/csrc -name '*.h' -o -name '*.cc' -o -name '*.cu')
INSTALL_INPUTS = setup.py pyproject.toml $(shell find csrc $(PACKAGES) -name __pycache__ -prune -o -type f -print)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# gloo's and torchft's recovery are measured with torch 2.15, where `make test TORCH=2.15.0` has left one.
RECOVERY_PEERS := $(patsubst %,--gloo-python % --torchft-python %,$(wildcard $(CURDIR)/.venv-2.15.0/bin/python))

.PHONY: help train test bench lint format sanitize install clean distclean FORCE
.DEFAULT_GOAL := help

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: TORCH=$(TORCH) (also 2.15.0), PYTEST_ARGS='-k gate', MAX_JOBS=$(MAX_JOBS), PYTHON=$(PYTHON)"

train: $(VENV)/installed  ## Run the main job: train a GPT, be killed, resume bit for bit; then let ranks die and go on.
	$(BIN)/python examples/train_story.py
	$(BIN)/python examples/elastic_story.py

test: $(VENV)/installed $(VENV)/development  ## Run the tests against the installed build of this checkout.
	$(BIN)/python -P -m pytest $(PYTEST_ARGS)

bench: $(VENV)/installed $(VENV)/development $(VENV)/peers  ## Run the benchmarks; JSON goes to runs/bench/.
	@mkdir -p runs/bench
	$(BIN)/python benchmarks/checkpoint.py --size-mb 1024 --json runs/bench/checkpoint.json
	$(BIN)/python benchmarks/every_step.py --json runs/bench/every_step.json
	$(BIN)/python benchmarks/actors.py --json runs/bench/actors.json
	$(BIN)/python benchmarks/faults.py --json runs/bench/faults.json
	$(BIN)/python benchmarks/deltas.py --json runs/bench/deltas.json
	$(BIN)/python benchmarks/two_weeks.py --json runs/bench/two_weeks.json
	$(BIN)/python benchmarks/group.py --json runs/bench/group.json
	$(BIN)/python benchmarks/recovery.py $(RECOVERY_PEERS) --json runs/bench/recovery.json
	$(BIN)/python benchmarks/soak.py --events 1000 --json runs/bench/soak.json

lint: $(VENV)/development  ## Check formatting, style and types; changes nothing.
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: $(VENV)/development  ## Format Python and C++ in place.
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/ruff check --fix-only --quiet $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

sanitize:  ## Build and run the native tests with ASan+UBSan and with TSan; nothing is suppressed.
	+$(MAKE) -C tests/csrc -j$(MAX_JOBS) FLAVOUR=asan check
	+$(MAKE) -C tests/csrc -j$(MAX_JOBS) FLAVOUR=tsan check

install: $(VENV)/installed  ## Make the virtual environment and install this checkout into it.

clean:  ## Remove what was built; keeps virtual environments.
	rm -rf build *.egg-info _elastates*.so .mypy_cache .ruff_cache .pytest_cache $(CURDIR)/.venv-*/installed

distclean: clean  ## Also remove the virtual environments.
	rm -rf $(CURDIR)/.venv-*

# Debian without python3-venv has no ensurepip; the pip that is there can then furnish the environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(VENV)/torch: | $(BIN)/python
	$(BIN)/python -m pip install --quiet torch==$(TORCH) 'setuptools>=77' ninja
	touch $@

# The names and versions stand in pyproject.toml alone.
$(VENV)/dependencies: $(VENV)/torch pyproject.toml scripts/requirements.py
	$(BIN)/python scripts/requirements.py examples > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet torch==$(TORCH) -r $(VENV)/requirements.txt
	touch $@

# Linters, and every library that the tests try ours with: much more than training needs.
$(VENV)/development: $(VENV)/dependencies
	$(BIN)/python scripts/requirements.py dev zarr > $(VENV)/development.txt
	$(BIN)/python -m pip install --quiet torch==$(TORCH) -r $(VENV)/development.txt
	touch $@

$(VENV)/peers: $(VENV)/dependencies benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet torch==$(TORCH) -r benchmarks/requirements.txt
	touch $@

# A deleted file leaves no newer one behind, so the list of files is an input too.
$(VENV)/inputs: FORCE | $(BIN)/python
	@echo '$(sort $(INSTALL_INPUTS))' | cmp -s - $@ || echo '$(sort $(INSTALL_INPUTS))' > $@

$(VENV)/installed: $(VENV)/dependencies $(VENV)/inputs $(INSTALL_INPUTS)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	touch $@
