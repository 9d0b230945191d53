# make demo    train a tiny model with 1 % of its parameters beside full training (some minutes the first time)
# make test    the tests
# make lint    ruff and mypy
#
# Each does everything from nothing: it makes .venv, installs the tested versions with pip, and runs. The second
# time the installation is skipped, and finished runs of the demo are read instead of repeated.
#
# On Linux pip installs torch with its CUDA libraries (some GB). For the small build without them:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test lint format clean
.DEFAULT_GOAL := demo

demo: $(READY)
	$(BIN)/multiticket demo --steps 100

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first, so that pip takes the pinned one before it resolves what depends on it
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) ..."
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
