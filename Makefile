# Every target sets up .venv by itself when it is missing or older than the lock file.
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
N      ?= 10
MINUTES ?= 480
SOAK_MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help setup site demo demo-recover demo-many example run test test-fast test-engine torture check format bench soak docs lock deploy smoke destroy clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Make .venv from the hash-pinned lock file

$(READY): requirements-dev.lock
	@test ! -L .venv || { echo ".venv is a link to $$(readlink .venv), another clone's: it is not cleared; make it there" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

demo: $(READY)  ## Publish 1,000 users, kill -9 and wipe the worker twice, prove that nothing was lost
	@$(BIN)/python -m local demo

demo-recover: $(READY)  ## Recover to a checkpoint beside a running worker, replay, prove that everything came back
	@$(BIN)/python -m local demo-recover

demo-many: $(READY)  ## 100,000 messages pulled by three instances on PostgreSQL; one and the database killed -9, the proof
	@$(BIN)/python -m local demo-many

example: $(READY)  ## Orders beside users, as an adopter declares them: published, read, changed, erased, restored
	@$(BIN)/python -m local example

run: $(READY)  ## The whole stack on this machine, until Ctrl-C, with commands to try
	@$(BIN)/python -m local run

test: $(READY)  ## Every test: unit, property, integration (real Litestream, real emulator), crash
	@$(BIN)/python -m compileall -q worker publisher local bench  # the tests start hundreds of processes
	$(BIN)/python -m pytest -n 4 --dist worksteal

test-fast: $(READY)  ## The tests that start no other process
	$(BIN)/python -m pytest -m "not slow"

test-engine: $(READY)  ## The tests of PostgreSQL on a server of yours, in databases of their own (URL=postgresql://...)
	@$(if $(URL),,$(error say where: make test-engine URL=postgresql://USER@HOST/DATABASE; USER may create databases))
	TEST_DATABASE_URL='$(URL)' $(BIN)/python -m pytest -m postgresql -n 2 --dist worksteal

torture: $(READY)  ## Each crash test N times (make torture N=10), and longer histories, for at most MINUTES
	timeout $(MINUTES)m env PROPERTY_EXAMPLES=400 $(BIN)/python -m pytest tests/crash tests/property tests/integration/test_bench.py tests/integration/test_stops.py -n 4 --dist worksteal --cycles $(N)

check: $(READY)  ## Formatter, linter, strict types, which room may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)  ## Apply the formatter and the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Measure everything, a quarter of an hour; rewrites bench/README.md (needs wrk: apt-get install wrk)
	$(BIN)/python -m bench

soak: $(READY)  ## Memory over ten minutes of steady load and in a flood; rewrites bench/README.md
	$(BIN)/python -m bench.soak --write --minutes $(SOAK_MINUTES)

docs: $(READY)  ## Write the generated parts of docs/ again: settings, costs
	@$(BIN)/python -m local docs

site: $(READY)  ## The guide as a site, in site/: each link and anchor must lead somewhere
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --site-dir site
	@echo 'written: site/index.html'

lock: $(READY)  ## Resolve pyproject.toml into the two lock files again
	$(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header --allow-unsafe --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

# Settings such as MEMORY=2Gi are given like PROJECT: make hands on what its command line says, in the environment.
WHERE = $(if $(or $(SETTINGS),$(and $(PROJECT),$(REGION))),,$(error say where: make $@ PROJECT=... REGION=..., or SETTINGS=FILE))

deploy:  ## Create or update the service on Cloud Run (PROJECT=... REGION=... or SETTINGS=FILE; DRY_RUN=1 only prints)
	@$(WHERE)
	@PYTHON=$(PYTHON) deploy/deploy.sh $${PROJECT:+"$$PROJECT"} $${REGION:+"$$REGION"}

smoke:  ## Try the deployed service: doctor, publish, acknowledged, read back, erased (PROJECT=... REGION=...)
	@$(WHERE)
	@deploy/smoke.sh $${PROJECT:+"$$PROJECT"} $${REGION:+"$$REGION"}

destroy:  ## Delete it again, but for the bucket with the data (PROJECT=... REGION=...; YES=1 does not ask)
	@$(WHERE)
	@deploy/destroy.sh $${PROJECT:+"$$PROJECT"} $${REGION:+"$$REGION"}

clean:  ## Remove .venv, caches and the local stack's data
	rm -rf .venv .run site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
