# Every target is also printed in the README as plain commands.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# these notebooks first, so that no long one is left for one core at the end
LONGEST := $(patsubst %,notebooks/%.ipynb,10_scan_a_model one_victim 08_detecting 07_other_defenses)
BOOKS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard notebooks/*.ipynb)))

.PHONY: run test test-faults lab install notebooks assignments

run: $(INSTALLED)  ## the main job on digits: notebooks 01 to 04, the table, the figures
	$(BIN)/python -m mesa_lib run params/digits.yaml

# JOBS files at a time, one thread each, and one store: what is trained already is not trained again.
test: $(INSTALLED)  ## everything: style, tests, notebooks compared with what they show, one series by papermill
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && export OMP_NUM_THREADS=1 && \
	  MESA_TEST_RUNS=$$store $(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests && \
	  MESA_RUNS=$$store $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --nbval $(BOOKS)

test-faults: $(INSTALLED)  ## batch runs killed, interrupted, without disk: 18 minutes more
	$(BIN)/python -m pytest tests/test_faults.py --faults

lab: $(INSTALLED)  ## open the notebooks
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

notebooks: $(INSTALLED)  ## execute the notebooks in place (maintainers)
	$(BIN)/python -m mesa_lib refresh

assignments: $(INSTALLED)  ## the problem sets as students get them: assignments/release/
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[course]'
	cd assignments && for set in source/*/; do \
	  $(abspath $(BIN))/nbgrader generate_assignment $$(basename $$set) --create --force || exit 1; done

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[dev]'
	touch $@
