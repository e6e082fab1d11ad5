# Everything runs in .venv. It is made from the lock file, and made again when the lock file is newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
       --custom-compile-command "make lock" --extra demo pyproject.toml

# Without compiled files each process of the tests, and each start of retl, compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all test-duckdb15 test-crash test-world test-schedulers test-spark mutate lint bench bench-large bench-peers bench-sources bench-targets docs sync dry-run run-reverse-etl lock clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(READY) ## the sample project on this machine: real servers, a kill half way, nothing lost
	$(BIN)/retl demo $(ARGS)

test: $(READY) ## every test; ARGS=tests/test_servers.py for some
	$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

test-all: $(READY) test-duckdb15 ## the same with what CI leaves out for time: 1,000 examples a property, each extra alone
	RETL_TEST_ALL=1 $(BIN)/pytest -n 4 --dist worksteal $(ARGS)

test-duckdb15: $(READY)
	test -x .venv-duckdb15/bin/python || { $(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-duckdb15 \
	 && $(BIN)/uv pip install --quiet --python .venv-duckdb15 'duckdb>=1.5,<1.6'; }
	PYTHONPATH=src .venv-duckdb15/bin/python -m tests.canonical

test-crash: $(READY) ## kill runs at events and system calls for a quarter of an hour, and print what was lost
	$(BIN)/python -m tests.crash_sweep $(ARGS)

test-world: $(READY) ## others act between and during runs: every scene on every server here, and what came of it
	$(BIN)/python -m tests.world $(ARGS)

test-schedulers: $(READY) ## the guides' DAG and assets in a real Airflow and a real Dagster
	test -x .venv-schedulers/bin/airflow || { $(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-schedulers \
	 && $(BIN)/uv pip install --quiet --python .venv-schedulers --group schedulers; }
	RETL_TEST_AIRFLOW=$(CURDIR)/.venv-schedulers/bin/python RETL_TEST_DAGSTER=$(CURDIR)/.venv-schedulers/bin/python \
	 $(BIN)/pytest tests/test_scheduling.py $(ARGS)

test-spark: $(READY) ## shards in a real Spark, with executors that are killed; needs Java 17
	$(BIN)/uv pip install --quiet --python $(BIN)/python 'pyspark>=4,<5'
	$(BIN)/pytest tests/test_spark.py $(ARGS)

mutate: $(READY) ## change the code behind the promises, one expression at a time: does a test notice?
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group mutate
	$(BIN)/python -m tests.mutation $(ARGS)

lint: $(READY) ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## compare retl with doing it by hand; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks.run $(ARGS)

bench-large: $(READY) ## the same with ten times the rows: growth and memory
	$(BIN)/python -m benchmarks.run --large $(ARGS)

bench-sources: $(READY) ## 10 million rows of a source beside the bare scan of its library
	$(BIN)/python -m benchmarks.sources $(ARGS)
	$(BIN)/python -m pages

bench-targets: $(READY) ## first loads of MariaDB, ClickHouse, SQLite, DuckDB, Kafka and files beside their own tools
	$(BIN)/python -m benchmarks.targets $(ARGS)
	$(BIN)/python -m pages

bench-peers: $(READY) ## the same job with drt, dlt and executemany, installed only for this
	$(BIN)/python -m benchmarks.peers $(ARGS)

docs: $(READY) ## generate pages (docs/values.md from runs on real servers), then site/ from all pages
	$(BIN)/python -m tests.values_page
	$(BIN)/python -m pages
	test .venv-docs/.ready -nt requirements-docs.lock || { $(BIN)/python -m venv --clear .venv-docs \
	 && .venv-docs/bin/pip install --quiet --require-hashes -r requirements-docs.lock && touch .venv-docs/.ready; }
	.venv-docs/bin/mkdocs build --strict --quiet

sync: $(READY) ## run one sync: make sync SYNC=user_segments
	@test -n "$(SYNC)" || { echo "usage: make $@ SYNC=user_segments" >&2; exit 2; }
	$(BIN)/retl sync --sync "$(SYNC)" $(ARGS)

dry-run: $(READY) ## show what one sync would do: make dry-run SYNC=user_segments
	@test -n "$(SYNC)" || { echo "usage: make $@ SYNC=user_segments" >&2; exit 2; }
	$(BIN)/retl sync --sync "$(SYNC)" --dry-run $(ARGS)

run-reverse-etl: $(READY) ## run every enabled sync
	$(BIN)/retl sync --sync all $(ARGS)

lock: $(READY) ## pin the newest allowed versions; UPGRADE= keeps the pinned ones
	$(LOCK) $(UPGRADE) --output-file requirements.lock
	$(LOCK) $(UPGRADE) --group dev --constraint requirements.lock --output-file requirements-dev.lock
	$(subst --extra demo pyproject.toml,,$(LOCK)) $(UPGRADE) --group docs --output-file requirements-docs.lock

lock: UPGRADE ?= --upgrade

clean: ## remove generated files; data and state stay
	rm -rf $(VENV) .venv-* site build dist mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements-dev.lock
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
