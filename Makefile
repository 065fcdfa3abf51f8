# The documented commands. Each makes .venv from requirements.lock when it is missing or older than the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install study test check bench slow report lab evaluators lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(READY) ## Make .venv with exactly the tested versions

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install it: sudo apt-get install python3 python3-venv python3-pip" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: Python's venv module is missing; install it: sudo apt-get install python3-venv python3-pip" >&2; exit 2; }
	@if [ -d $(VENV) ]; then echo "make: .venv is older than requirements.lock: bringing it up to date"; else echo "make: .venv is missing: making it from requirements.lock (some minutes, once)"; fi
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

study: $(READY) ## The main job: the components ablation on Fashion-MNIST, three seeds, with its report
	@$(BIN)/iar-study run components --profile quick --seeds 0 1 2

test: $(READY) ## All tests (minutes)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(READY) ## Lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY) ## Benchmarks, side by side with named peers
	@$(BIN)/python -m pytest -q -m bench tests/benchmarks

slow: $(READY) ## The tests that take longer, such as killing a training thirty times
	@$(BIN)/python -m pytest -q -m "slow and not bench"

report: $(READY) ## Write the committed examples anew from their results, and the reports of what was run here
	@for results in reports/example*/results.tar.xz; do $(BIN)/iar-study report --from $$results -o $$(dirname $$results) || exit; done
	@test ! -d runs/studies || $(BIN)/iar-study report

lab: $(READY) ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks

evaluators: $(READY) ## Make the shipped evaluators anew, where their maker's version was raised; CIFAR10=FOLDER for its too
	@$(BIN)/python -m iar_study.running.shipping fashion-mnist iar_study/evaluation/fixed/fashion-mnist.safetensors
	@test -z "$(CIFAR10)" || $(BIN)/python -m iar_study.running.shipping folder:$(CIFAR10) iar_study/evaluation/fixed/cifar10-32px.safetensors

lock: $(READY) ## Write requirements.lock from what is installed in .venv
	@{ head -1 requirements.lock; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | sort -f; } > .lock.tmp && mv .lock.tmp requirements.lock

clean: ## Remove .venv and caches; runs, the MLflow store and reports stay
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
