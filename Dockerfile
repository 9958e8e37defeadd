# The README's commands in a container: its set-up when it is built, `make reproduce` and `make lab` when it runs.
#   docker build -t sfr_repro .
#   docker run --rm sfr_repro
#   docker run --rm -p 8888:8888 sfr_repro lab
# Without torch's CPU index (--build-arg PIP_EXTRA_INDEX_URL=...) the image holds 3 GB of CUDA libraries.
FROM python:3.11-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home reader \
 && install -d -o reader /home/reader/sfr_repro
USER reader
WORKDIR /home/reader/sfr_repro
RUN install -d ~/.jupyter \
 && echo '{"ServerApp": {"ip": "0.0.0.0", "open_browser": false}}' > ~/.jupyter/jupyter_server_config.json
COPY --chown=reader . .
ARG PIP_EXTRA_INDEX_URL=
RUN PIP_NO_CACHE_DIR=1 make .venv/.dev
EXPOSE 8888
ENTRYPOINT ["make"]
CMD ["reproduce"]
