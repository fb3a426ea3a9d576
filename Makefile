# Every target is also printed in docs/development.md as plain commands.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
VARIANT ?= 0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# JOBS files at a time, one thread each; what is trained is kept in .test-store/ until the sources change
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --nbval

.PHONY: run test test-all lab play book install notebooks assignments students

run: $(INSTALLED)  ## the main job on digits: notebooks 01 to 04, the table, the figures
	$(BIN)/python -m mesa_lib run params/digits.yaml

test: $(INSTALLED)  ## style, layers, tests, every notebook compared with its stored outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) tests notebooks

test-all: test  ## also the long tests: detection statistics, hostile input at full length, batch runs killed
	$(PYTEST) -m "long or faults" tests

lab: $(INSTALLED)  ## open the notebooks
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

play: $(INSTALLED)  ## the playground in a browser: stamp triggers, see what every model predicts
	$(BIN)/python -m mesa_lib play

book: $(INSTALLED)  ## the documentation and the notebooks as a website: docs/_build/html/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build/html

notebooks: $(INSTALLED)  ## execute the notebooks in place (maintainers)
	$(BIN)/python -m mesa_lib refresh

# the folder in which a variant is graded: assignments/ or one of its own, with its sources, gradebook and hand-ins
COURSE = assignments$(if $(filter-out 0,$(VARIANT)),/variant/$(VARIANT))
assignments: $(INSTALLED)  ## the problem sets as students get them: assignments/release/; VARIANT=7: with other numbers
	@test -d assignments/source || { echo "assignments/source: expected the sources of the sets, which this copy lacks"; exit 1; }
ifneq ($(VARIANT),0)
	mkdir -p $(COURSE) && rm -rf $(COURSE)/source && cp assignments/nbgrader_config.py $(COURSE) && \
	  $(BIN)/python assignments/variant.py $(VARIANT) $(COURSE)/source
endif
	cd $(COURSE) && for set in source/*/; do \
	  $(abspath $(BIN))/nbgrader generate_assignment $$(basename $$set) --create --force || exit 1; done

students: assignments  ## the project without solutions, and the released sets: assignments/students.zip
	$(BIN)/python assignments/student_copy.py $(VARIANT)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[dev]'
	touch $@
