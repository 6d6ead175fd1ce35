# make demo: set up and run the main job on real music.   make test: set up and run all tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo train-demo test lint test-mteb test-oldest benchmark clean

setup: .venv/done

.venv/done: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# Trains the small model of code/clamp3/tiny anew, into train-demo/tiny: 34 minutes on two cores.
train-demo: setup
	$(BIN)/python examples/train_tiny.py

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests that need MTEB, which is large, so that `make test` passes over them.
test-mteb: setup
	$(BIN)/python -m pip install --quiet --requirement requirements-mteb.txt
	$(BIN)/python -m pytest tests/test_mteb.py

# The golden tests with the oldest supported libraries, in an environment of their own.
test-oldest: .venv-oldest/done
	.venv-oldest/bin/python -m pytest -m golden

.venv-oldest/done: requirements-oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --requirement requirements-oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

benchmark: setup
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/preprocessing.py
	$(BIN)/python benchmarks/audio.py

clean:
	rm -rf .venv .venv-oldest demo
