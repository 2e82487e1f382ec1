# Two commands do everything: `make train` and `make test`. Both set up `.venv` first (quick the second time).
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
TORCH   = torch==2.13.0
# Another build of torch (a CUDA version, a mirror): make setup TORCH_ARGS="--index-url …"
TORCH_ARGS ?=
ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-slurm check lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## create .venv from requirements.lock

# torch comes first and alone; everything else is installed without dependency resolution, so that no later step can
# bring in another torch or CUDA packages. `pip check` then proves that the set is complete.
$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH_ARGS) $(TORCH)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@

train: setup  ## run the main job: build the digits zoo, train NG-GNN and the baselines, print the table
	$(BIN)/python train.py $(ARGS)

test: setup  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

test-slow: setup  ## run the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

test-slurm: setup  ## install Slurm (Debian, root), start a cluster of two nodes on this machine, run jobs on it
	@{ command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y slurmctld slurmd slurm-client munge; } || \
		echo "Slurm cannot be installed here: the tests will say that they are skipped"
	$(BIN)/python -m pytest tests/slurm -m slow -n 0 $(ARGS)

check: setup  ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Releases younger than a week are not taken (supply-chain cooling-off). CUDA packages are torch's own business.
CUDA_PACKAGES = $(shell sed -n 's/^\(nvidia-[a-z0-9-]*\|cuda-[a-z0-9-]*\|triton\)==.*/--no-emit-package \1/p' $(VENV)/full.lock 2>/dev/null)
COMPILE = $(BIN)/uv pip compile pyproject.toml --extra dev --extra search --universal --python-version 3.10 --generate-hashes \
	--exclude-newer $(shell date -u -d '7 days ago' +%Y-%m-%d) --no-annotate --no-header --quiet
lock: setup  ## pin every version again (needs uv)
	$(BIN)/pip install --quiet uv
	$(COMPILE) -o $(VENV)/full.lock
	$(COMPILE) $(CUDA_PACKAGES) -o requirements.lock

clean:  ## remove .venv and caches (not zoos, not runs)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache wsl.egg-info
