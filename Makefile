# `make help` lists the targets.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RECBOLE := .venv-recbole
AIRFLOW := .venv-airflow

.DEFAULT_GOAL := help
.PHONY: help demo test check gate-faults bench-gate oracle oracle-spark bench-pit bench-online fuzz-serving load-test bench-upstream bench-train bench-periods bench-scale bench-spark-load same-on-spark test-cluster crash-matrix bench-switching bench-smoothing bench-world bench-quality bench-staleness bench-sanity bench-ablations bench-peers bench-capacity bench-ddp bench-ddp-quality test-airflow clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@echo "Making the virtual environment in $(VENV) (two to three minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --no-compile --quiet --progress-bar on -c constraints.txt -e ".[demo,dev]"
	@touch $(READY)

demo: $(READY)  ## run the main job on real data and print the lift table
	@$(BIN)/headwater demo

test: $(READY)  ## run the tests, in two processes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

gate-faults: $(READY)  ## damage real snapshots of the demo in every known way and ask the gate (minutes)
	@$(BIN)/python -m benchmarks.gate_faults

bench-gate: $(READY)  ## time and memory of the gate at 1M and 10M rows (about 10 minutes, 6 GB of disk)
	@$(BIN)/python -m benchmarks.gate

oracle: $(READY)  ## hold the point-in-time store against the brute-force loop, 2,000 random cases (minutes)
	@ORACLE_CASES=2000 $(BIN)/python -m pytest tests/feature_repo/stores/test_oracle.py

$(READY).spark: $(READY)
	@$(BIN)/python -m pip install --no-compile --quiet --progress-bar on -c constraints.txt -e ".[spark]"
	@touch $@

oracle-spark: $(READY).spark  ## the same on Spark, 500 cases in each of three time zones (an hour; needs Java 17)
	@SPARK_CASES=500 $(BIN)/python -m pytest -m spark tests/feature_repo/spark/test_spark_oracle.py

bench-pit: $(READY)  ## time and memory of point-in-time joins beside Feast, Polars, DuckDB (half an hour, 45 GB of disk)
	@$(BIN)/python -m benchmarks.pit

bench-online: $(READY)  ## materialization and online reads beside Feast and the floor, SQLite and Redis (a quarter of an hour)
	@$(BIN)/python -m benchmarks.online

fuzz-serving: $(READY)  ## malformed requests by the server's own OpenAPI document, thousands of cases (minutes)
	@FUZZ_CASES=400 $(BIN)/python -m pytest -s tests/integration/test_serving.py -k malformed --timeout 1500

load-test: $(READY)  ## five minutes of mixed requests with a refresh, a promotion and a rollback meanwhile
	@$(BIN)/python -m benchmarks.online_load

check: $(READY)  ## lint and type-check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench-upstream: $(READY)  ## recall of upstream settings before the test period, on the demo's log (half an hour)
	@$(BIN)/python -m benchmarks.upstream

crash-matrix: $(READY)  ## kill every operation at every durable write, run it again, compare (minutes)
	@$(BIN)/python -m benchmarks.crash_matrix

bench-switching: $(READY)  ## promote and roll back under constant requests, releases of docs/versions.md (a minute)
	@$(BIN)/python -m benchmarks.switching

bench-smoothing: $(READY)  ## rankers with smoothed and raw vectors over several retrains (half an hour)
	@$(BIN)/python -m benchmarks.smoothing

bench-periods: $(READY)  ## the demo's chain on another part of the year (ten minutes)
	@$(BIN)/python -m benchmarks.periods

bench-train: $(READY)  ## training and inference of the upstream beside bare loops, 1M and 10M impressions (minutes, 4 GB of disk)
	@$(BIN)/python -m benchmarks.train

bench-scale: $(READY).spark  ## joins on DuckDB and on Spark, ours and Feast's, 200k and 2M labels (an hour; needs Java 17)
	@$(BIN)/python -m benchmarks.scale

bench-spark-load: $(READY).spark  ## loads into Redis by Feast's Spark engine and by ours, and their bytes (minutes; needs Java 17, redis-server)
	@$(BIN)/python -m benchmarks.spark_load

same-on-spark: $(READY).spark  ## the demo's training sets made by Spark, compared with DuckDB's bit for bit (a minute; after make demo)
	@$(BIN)/python -m benchmarks.spark_demo

test-cluster: $(READY).spark  ## a standalone Spark cluster of two workers, one killed midway, and Redis (minutes; needs both)
	@$(BIN)/python -m pytest -s tests/integration/spark_cluster.py

bench-world: $(READY)  ## time and memory of headwater simulate at 1M and 20M impressions (minutes, 1 GB of disk)
	@$(BIN)/python -m benchmarks.world

bench-peers: $(READY)  ## LightGBM, a plain SVD, a monolith, ALS, BPR, item-kNN and SASRec beside ours (three hours, two of them SASRec; resumable)
	@$(BIN)/python -m pip install --no-compile --quiet -c constraints.txt -e ".[peers]"
	@$(MAKE) --no-print-directory $(RECBOLE)/.ready || echo "SASRec is left out: its environment could not be made"
	@$(BIN)/python -m benchmarks.peers $$(test -f $(RECBOLE)/.ready && echo --sasrec-python $(RECBOLE)/bin/python)

# RecBole needs numpy below 2 and more old packages: it gets an environment of its own.
$(RECBOLE)/.ready: benchmarks/peers_sasrec_requirements.txt
	@$(PYTHON) -m venv $(RECBOLE)
	@$(RECBOLE)/bin/python -m pip install --no-compile --quiet -r $<
	@touch $@

bench-quality: $(READY)  ## records of the demo's lift table, retrieval and ranking cost; docs/results.md (a minute)
	@$(BIN)/python -m benchmarks.quality
	@$(BIN)/python -m benchmarks.quality_tables

bench-staleness: $(READY)  ## lift against days since refresh, on the demo's home folder (minutes)
	@$(BIN)/python -m benchmarks.quality_staleness

bench-sanity: $(READY)  ## shuffled labels, shuffled ids, a deliberate leak, on the demo's home folder (minutes)
	@$(BIN)/python -m benchmarks.quality_sanity

bench-ablations: $(READY)  ## one choice of the upstream changed at a time, on a simulated world (a quarter of an hour, resumable)
	@$(BIN)/python -m benchmarks.quality_ablations

bench-capacity: $(READY)  ## unit costs behind headwater plan, and docs/scale.md (minutes, 2 GB of disk, needs redis-server)
	@$(BIN)/python -m benchmarks.capacity
	@$(BIN)/python -m benchmarks.capacity_tables

bench-ddp: $(READY)  ## samples per second of upstream training in one and in two processes (minutes)
	@$(BIN)/python -m benchmarks.ddp

bench-ddp-quality: $(READY)  ## recall of the demo's upstream trained by one process and by two, three seeds (a quarter of an hour)
	@$(BIN)/python -m benchmarks.ddp_quality

test-airflow: $(READY)  ## load and run the exported DAG in the real Airflow, in an environment of its own (minutes)
	@test -f $(AIRFLOW)/.ready || { $(PYTHON) -m venv $(AIRFLOW) && $(AIRFLOW)/bin/python -m pip install --no-compile --quiet "apache-airflow>=3.3,<4" && touch $(AIRFLOW)/.ready; }
	@AIRFLOW_PYTHON=$(abspath $(AIRFLOW))/bin/python $(BIN)/python -m pytest tests/integration/test_airflow.py

clean:  ## remove the demo's home folder (the virtual environment stays)
	rm -rf .headwater
