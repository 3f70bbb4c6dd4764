# secateur as an image:
#
#     docker build -t secateur .
#     docker run --rm -v "$PWD:/work" secateur prune ./my-llama --task questions.csv -o out
#
# On Linux the package index gives torch for CUDA; for CPUs alone, and 4 GB less, build with
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
#
# No Docker was at hand where this was written, so the image was not built there. `make docker-lines` runs the RUN lines
# in a new environment with nothing but the files that are copied here, and then the entry point.
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL
WORKDIR /secateur
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m pip install --no-cache-dir -c constraints.txt torch==2.13.0
COPY src src
RUN python -m pip install --no-cache-dir -c constraints.txt ".[gguf,lm-eval,lora]"
RUN useradd --create-home --uid 1000 secateur
USER secateur
WORKDIR /work
ENTRYPOINT ["secateur"]
