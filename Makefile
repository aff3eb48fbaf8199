# `make run` starts the hotline, `make test` proves it. Everything goes into .venv and var; see README.md.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never
# Options for `callcenter`, e.g. make run OPTIONS="--config /etc/callcenter.toml"
OPTIONS ?=

.PHONY: help
help:
	@echo 'make run     设置并启动 / set up and start (Ctrl-C stops)'
	@echo 'make test    设置并运行全部测试 / set up and run every test'
	@echo 'make bench   测量性能，与原生 Queue() 对照 / measure, beside the native Queue(); see docs/performance.md'
	@echo 'make chaos   故意制造故障 / break things on purpose; see docs/reliability.md'
	@echo 'make setup   只设置 / set up only'
	@echo 'make check   格式、类型与分层检查 / format, lint, types, layers'
	@echo 'make clean   删除可重建的东西 / remove what can be made again (never data or recordings)'

.PHONY: run
run: environment console
	@exec $(BIN)/callcenter $(OPTIONS) run

.PHONY: setup
setup: environment console
	@$(BIN)/callcenter $(OPTIONS) setup

.PHONY: test
test: environment-dev console
	@tools/system-packages.sh postgresql espeak-ng baresip-core chromium curl libfaketime
	@$(BIN)/callcenter setup --asterisk-only
	@tools/console.sh test
	@$(BIN)/pytest $(PYTEST_OPTIONS)

# make bench NAMES="core enter" runs some of it; OPTIONS=--markdown prints the table of docs/performance.md.
# Without a C compiler one row says so, and the others are measured.
.PHONY: bench
bench: environment-dev
	@tools/system-packages.sh gcc libc6-dev || true
	@$(BIN)/callcenter setup --asterisk-only
	@$(BIN)/python -m tests.bench $(OPTIONS) $(NAMES)

# make chaos NAMES="stages away" runs some of it.
.PHONY: chaos
chaos: environment-dev
	@tools/system-packages.sh postgresql libfaketime
	@$(BIN)/callcenter setup --asterisk-only
	@$(BIN)/python -m tests.chaos $(NAMES)

.PHONY: check
check: environment-dev
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy --strict
	@$(BIN)/lint-imports
	@$(BIN)/deptry callcenter
	@tools/console.sh check

.PHONY: environment environment-dev
environment:
	@tools/environment.sh run
environment-dev:
	@tools/environment.sh dev

.PHONY: console
console:
	@tools/console.sh build

# The database, the recordings and the settings are nobody's to delete but the operator's.
.PHONY: clean
clean:
	@rm -rf $(VENV) agent_console/node_modules agent_console/dist agent_console/src/generated .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find callcenter tests -name __pycache__ -type d -prune -exec rm -rf {} +
