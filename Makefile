# Every job of the project; `make` alone lists them. Variables are passed as in `make serve HTTP_PORT=9000`.
VENV := .venv
RUN   = $(VENV)/bin/python -m build_scripts
# For commands that query a running server: they install nothing, so that its environment does not change.
ASK   = [ -x $(VENV)/bin/python ] || { echo "error: $(VENV) is missing; run \`make install\` first" >&2; exit 1; }; $(RUN)

# Each variable NAME of the command line is exported as TRITON_TC_NAME. Values arrive as typed, with `$`, quotes, `#` and
# spaces (except leading ones), because make neither expands them nor exports NAME itself. Python refuses unknown names.
# Variables of the environment are ignored: TEXT, FILE and HOST mean other things there.
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
$(foreach name,$(given),$(eval export TRITON_TC_$(name) := $$(value $(name))))
unexport $(given)
# make would also pass its command line on in this variable.
MAKEOVERRIDES :=

.DEFAULT_GOAL := help
.PHONY: help install repo package serve classify health doctor status release rollback
.PHONY: evaluate diff perf compare tune bench soak
.PHONY: check test test-all test-server test-deploy lint lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(VENV)/installed ## create .venv with the pinned packages that serving needs: PYTHON= INDEX_URL=<mirror> TORCH_INDEX=<index with torch>

# A PYTHON other than the environment's own builds the environment again.
ifeq ($(origin PYTHON),command line)
ifneq ($(file <$(VENV)/made-with),$(value PYTHON))
.PHONY: $(VENV)/installed
endif
endif

$(VENV)/installed: pyproject.toml constraints.txt build_scripts/install.sh
	@sh build_scripts/install.sh $(VENV)

# A dependency group of pyproject.toml, installed with the first target that needs it.
$(VENV)/installed-%: $(VENV)/installed
	@sh build_scripts/install.sh $(VENV) $*

# Does not depend on `install`, which fails while pyproject.toml and constraints.txt contradict each other.
lock: ## pin all indirect dependencies, for every Python, in constraints.txt
	@[ -x $(VENV)/bin/uv ] || { echo "error: $(VENV)/bin/uv is missing; run \`make lint\` first"; exit 1; }
	@$(VENV)/bin/uv pip compile pyproject.toml --group dev --universal --python-version 3.10 --quiet \
	  --no-python-downloads --no-annotate --custom-compile-command "make lock" --output-file constraints.txt

repo: install ## build the model repository: MODEL= TOKENIZER= NAME= MAX_LENGTH= DOCUMENTS=mean or max STRIDE= PRECISION= CALIBRATION= CALIBRATE=<labelled texts> MODEL_REPOSITORY=
	@PYTHONHASHSEED=0 $(RUN) repo

package: install ## pack the live releases without links, for a bucket, a volume or an image: OUTPUT= DEVICE=cpu MODEL_REPOSITORY=
	@$(RUN) package

serve: install ## build if needed and run tritonserver: HOST= HTTP_PORT= GRPC_PORT= METRICS_PORT= DRAIN= TRACE= CACHE= LOG= TLS_CERT= TLS_KEY= TLS_CA=, and the variables of repo
	@exec $(RUN) serve

classify: ## print class id, label and probability of TEXT="…" (PAIR="…"), or of every line of FILE=path (- for stdin): NAME= HOST= GRPC_PORT= TLS_CA=
	@$(ASK) classify

health: ## print the supervisor's verdict; exit 0 if the server may get requests, or with LIVE=1 if it lives; NAME= asks for an inference: HOST= HTTP_PORT= URL= TIMEOUT=
	@$(ASK) health

doctor: ## check whether this machine can serve the repository, one line per check: MODEL_REPOSITORY= HOST= HTTP_PORT= GRPC_PORT= METRICS_PORT=
	@$(ASK) doctor

status: ## print the running server's live releases, and the releases to roll back to: HTTP_PORT=
	@$(ASK) status

release: ## build MODEL=… and put it live in the running server, without a failed request: NAME= HTTP_PORT= EVALUATE=<labelled texts> WORSE_BY=
	@$(ASK) release

rollback: ## put the previous release live again: NAME= HTTP_PORT=
	@$(ASK) rollback

evaluate: $(VENV)/installed-quality ## measure a classifier on labelled texts, in build/evaluate: FILE= TEXT_COLUMN= LABEL_COLUMN= PAIR_COLUMN= MODEL= RELEASE= NAME=
	@$(RUN) evaluate

diff: $(VENV)/installed-quality ## compare the running server's answers with those of MODEL= or RELEASE= on the texts of FILE=, in build/diff: NAME=
	@$(RUN) diff

perf: $(VENV)/installed-bench ## sweep the ensemble with perf_analyzer, with report and plots in build/perf: MODEL=
	@$(RUN) perf

compare: $(VENV)/installed-bench ## measure the ensemble against the services that it replaces, in build/compare: MODEL=
	@$(RUN) compare

tune: $(VENV)/installed-tune ## find the best instances and threads for this machine, and write classifier/config.pbtxt: AIM=latency or throughput, P99_MS= FILE=
	@$(RUN) tune

bench: $(VENV)/installed-bench ## time the classifier file alone, against the machine's peak and other runtimes, in build/bench: MODEL=
	@$(RUN) bench

soak: $(VENV)/installed-dev ## send valid and hostile traffic while processes are killed: DURATION=600 MODEL= MAX_LENGTH=
	@$(VENV)/bin/python -m tests.soak

# More processes than cores, because tests wait a lot. Tests of one file share a server.
WITHOUT_SERVER = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 3 --dist worksteal
WITH_SERVER    = $(VENV)/bin/python -m pytest -n 3 --dist loadfile

check: $(VENV)/installed-dev lint ## run lint, and the tests that start no server
	@$(WITHOUT_SERVER) -m "not server and not slow and not long"

test: $(VENV)/installed-dev ## run the tests, but for the long ones
	@failed=0; $(WITHOUT_SERVER) -m "not server and not long" || failed=1; \
	  $(WITH_SERVER) -m "server and not long" || failed=1; exit $$failed

test-all: $(VENV)/installed-dev ## run all tests, the long ones too
	@failed=0; $(WITHOUT_SERVER) -m "not server" || failed=1; $(WITH_SERVER) -m server || failed=1; exit $$failed

# The launcher prefers a tritonserver on PATH, with that server's backends.
test-server: $(VENV)/installed-dev ## run the server tests against another tritonserver, and list skipped tests: TRITONSERVER=/opt/tritonserver/bin
	@server="$${TRITON_TC_TRITONSERVER:-$$(command -v tritonserver)}"; [ ! -d "$$server" ] || server="$$server/tritonserver"; \
	  case $$server in tritonserver|*/tritonserver) [ -x "$$server" ];; *) false;; esac || { \
	    echo "error: TRITONSERVER=$$server is no tritonserver; name the program or its directory" >&2; exit 1; }; \
	  PATH="$$(cd "$$(dirname "$$server")" && pwd):$$PATH" \
	  $(VENV)/bin/python -m pytest tests/serving -m server -rs --timeout 900

test-deploy: $(VENV)/installed-dev ## test package, image, proxies, replicas and alerts with the real tools; as root, install missing tools
	@$(VENV)/bin/python -m tests.support.deploy_tools
	@$(VENV)/bin/python -m pytest tests/deploy --timeout 1800 --durations 20

lint: $(VENV)/installed-dev ## check style, formatting and types; changes nothing
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

clean: ## remove everything that was built: artefacts, reports, caches, the environment
	rm -rf build $(VENV) $(VENV)-uv $(VENV)-new .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	rm -rf model_repository/.*.lock model_repository/live
	rm -rf model_repository/text_classifier/live model_repository/text_classifier/releases
	rm -rf $(dir $(wildcard model_repository/*/config.pbtxt.copied))
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
