# Everything that a fresh checkout needs: `make demo`, `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# FASHION_MNIST=folder where apt cannot bring the data set; FULL=1 for the README's table.
DEMO_FLAGS := $(if $(FASHION_MNIST),--data $(FASHION_MNIST)) $(if $(FULL),--full)
# A process a core takes the next test, or half of what another one has left.
TEST_FLAGS := --numprocesses logical --maxprocesses 4 --dist worksteal

.PHONY: demo test check clean

demo: $(STAMP)
	$(BIN)/dpgmm demo $(DEMO_FLAGS)

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(TEST_FLAGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build *.egg-info
