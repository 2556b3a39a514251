# Everything a newcomer needs: `make demo` to see it run, `make test` to see it hold.
# A fresh machine needs Python 3.11 or newer, make and a C compiler; all else comes from requirements.lock.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: mlflow help install demo up test test-fast check bench bench-actions bench-coap bench-commands bench-detection bench-history bench-http bench-live bench-models bench-rules bench-runtime bench-ways chaos storm lock clean

# Many images set it. Each process would compile all it imports, and pytest rewrite every test, each time anew:
# half a minute of each run of the tests.
unexport PYTHONDONTWRITEBYTECODE

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first of these that runs and is new enough: a name on the PATH alone proves nothing (pyenv's shims).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)

HTTP_PORT ?= 8000
MQTT_PORT ?= 1883
COAP_PORT ?= 5683
PORTS      = --http-port $(HTTP_PORT) --mqtt-port $(MQTT_PORT) --coap-port $(COAP_PORT)
# Devices of `make demo`, and the seconds after which it ends by itself (0: at Ctrl-C).
DEVICES   ?= 200
DURATION  ?= 0
# More options for the target's command, such as ARGS="-k windows" for make test.
ARGS      ?=

help:
	@echo "make demo       start everything on this machine and simulate $(DEVICES) devices (DEVICES=, DURATION=)"
	@echo "make up         the same without devices"
	@echo "make test       all tests; make test-fast: those of under a second, without Ray, by two processes"
	@echo "make check      lint, format, types, import contracts: what CI runs"
	@echo "make bench      how fast it is here; make bench-ways: by CoAP, HTTP, commands and the live feed"
	@echo "make bench-detection  how well anomalies are found (needs NAB's series)"
	@echo "make chaos      kills and hangs its parts under load, RUNS=$(RUNS) times each, and counts what was lost"
	@echo "make storm      simulates the runtime in SEEDS=$(SEEDS) random schedules of faults, on a virtual clock"
	@echo "make install    the virtual environment alone; make lock: pin the dependencies anew; make clean"
	@echo "Ports: HTTP_PORT=$(HTTP_PORT) MQTT_PORT=$(MQTT_PORT) COAP_PORT=$(COAP_PORT)"

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml setup.py $(wildcard */*.c */*.h)
	@test -n "$(PYTHON)" || { \
		echo "Sensorium needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || echo none)." \
			"Install one, or name it: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/sensorium up --data-dir .sensorium/demo $(PORTS) --config examples/demo.yaml \
		--simulate $(DEVICES) --live --duration $(DURATION) $(ARGS)

up: $(STAMP)
	$(BIN)/sensorium up --data-dir .sensorium/up $(PORTS) $(ARGS)

# Without a choice of tests, those that share nothing run by two processes first.
test: $(STAMP)
ifeq ($(strip $(ARGS)),)
	SENSORIUM_SEEDS=30 $(BIN)/pytest --hypothesis-profile=thorough -n 2 tests/unit
	$(BIN)/pytest tests/integration
else
	$(BIN)/pytest --hypothesis-profile=thorough $(ARGS)
endif

test-fast: $(STAMP)
	$(BIN)/pytest tests/unit -m "not slow" -n 2 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/sensorium bench ingest $(ARGS)

# What is told of alarms: decided from the log, and sent.
bench-actions: $(STAMP)
	$(BIN)/sensorium bench actions $(ARGS)

bench-detection: $(STAMP)
	$(BIN)/sensorium bench detection $(ARGS)

# The ways in and out besides MQTT's: CoAP, HTTP in batches, commands, the live feed.
bench-ways: bench-coap bench-http bench-commands bench-live

bench-coap: $(STAMP)
	$(BIN)/sensorium bench coap $(ARGS)

bench-http: $(STAMP)
	$(BIN)/sensorium bench http_batch $(ARGS)

bench-commands: $(STAMP)
	$(BIN)/sensorium bench commands $(ARGS)

bench-history: $(STAMP)
	$(BIN)/sensorium bench history $(ARGS)

bench-live: $(STAMP)
	$(BIN)/sensorium bench live $(ARGS)

bench-models: $(STAMP)
	$(BIN)/sensorium bench models $(ARGS)

bench-rules: $(STAMP)
	$(BIN)/sensorium bench rules $(ARGS)

bench-runtime: $(STAMP)
	$(BIN)/sensorium bench runtime $(ARGS)

# RUNS times each fault under load, and what became of every message that was acknowledged.
RUNS ?= 5
# Seeds of the simulated storms, from 0 on.
SEEDS ?= 500

storm: $(STAMP)
	SENSORIUM_SEEDS=$(SEEDS) $(BIN)/pytest -q tests/unit/actors/test_storm.py -k weather $(ARGS)

chaos: $(STAMP)
	$(BIN)/python tests/integration/chaos.py --runs $(RUNS) $(ARGS)

# Needs uv on the PATH. UV_ARGS=--upgrade brings newer versions in.
lock:
	uv pip compile --group dev --generate-hashes --no-emit-index-url --python-version 3.11 --universal \
		pyproject.toml -o requirements.lock --custom-compile-command "make lock" $(UV_ARGS)
	uv pip compile --generate-hashes --no-emit-index-url --python-version 3.11 --universal \
		requirements-mlflow.in -o requirements-mlflow.lock --custom-compile-command "make lock" $(UV_ARGS)

# A real MLflow server for the tests, in an environment of its own.
mlflow: .venv-mlflow/.installed

.venv-mlflow/.installed: requirements-mlflow.lock
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements-mlflow.lock
	@touch $@

clean:
	rm -rf $(VENV) .venv-mlflow build dist */_*.so *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .sensorium/demo .sensorium/up
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
