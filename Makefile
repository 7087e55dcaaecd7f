PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SEEDS ?= 2000
FIRST_SEED ?= 1
# One more than cores: real processes wait often.
JOBS ?= 3
SCENARIO ?= small

.PHONY: demo test lint docs campaign nightly bench clean

$(STAMP): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -c "from fl.kernels.golden import check_golden; check_golden()"  # compiles them, for all processes
	touch $@

demo: $(STAMP)  ## four validators, eight trainers, ten rounds, one crash
	$(BIN)/quorate demo

test: $(STAMP)  ## the whole suite; long campaigns are in `nightly`
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not nightly"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## the references of the SDK and of the RPC, from the program
	$(BIN)/python docs/generate.py

campaign: $(STAMP)  ## make campaign SEEDS=2000 FIRST_SEED=1
	$(BIN)/python -m tests.simulation.campaign --seeds $(SEEDS) --first-seed $(FIRST_SEED) --jobs $(JOBS)

nightly: $(STAMP)  ## everything that takes longer than a reader's patience
	$(BIN)/python -m pytest -m nightly
	$(MAKE) campaign
	$(MAKE) bench SCENARIO=soak

bench: $(STAMP)  ## make bench SCENARIO=small; `quorate bench --list` says which there are
	$(BIN)/quorate bench $(SCENARIO) --json bench-$(SCENARIO).json

clean:
	rm -rf $(VENV) build dist *.egg-info
