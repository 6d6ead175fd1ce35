# make demo: set up and run the main job on real music.   make test: set up and run all tests.
PYTHON ?= python3
BIN := .venv/bin

# How much `make soak` tries: minutes of embedding, kills of each command, mutated inputs for each parser.
MINUTES ?= 60
KILLS ?= 50
INPUTS ?= 20000

.PHONY: setup demo web train-demo finetune-demo test test-slow soak lint docs test-mteb test-oldest benchmark clean

setup: .venv/done

.venv/done: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

# A page to search with, at http://127.0.0.1:8000/: on a few old tunes, or `make web WEB="FOLDER --variant saas"`.
web: setup
	$(BIN)/python code/clamp3_web.py $(WEB)

# Trains the small model of code/clamp3/tiny anew, into train-demo/tiny: 34 minutes on two cores.
train-demo: setup
	$(BIN)/python examples/train_tiny.py

# Fine-tunes the small model on music that it has not seen, fully and by LoRA: some four minutes on two cores.
finetune-demo: setup
	$(BIN)/python examples/finetune.py

test: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

# What `make test` leaves out: models of full size, compiled layers, longer training, and whether the benchmarks run.
test-slow: setup
	$(BIN)/python -m pytest -n 2 -m slow

# The long form of tests/reliability, for many hours: kills, hostile input, concurrency, an hour of embedding.
soak: setup
	$(BIN)/python tests/reliability/soak.py --minutes $(MINUTES) --kills $(KILLS) --inputs $(INPUTS) $(SOAK)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

# The documents as a site, in build/site.
docs: setup
	$(BIN)/mkdocs build --strict

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
