# Two targets, cpu and gpu: docker build --target cpu -t p2d:cpu .    (docs/docker.md says more)
#
# BASE         a slim image with Python 3.11 to 3.13 as `python`
# TORCH_INDEX  an additional package index for torch; one that serves CPU builds keeps CUDA out of the cpu target
# GPU_EXTRAS   extras of pyproject.toml that the gpu target installs
ARG BASE=python:3.12-slim

FROM ${BASE} AS packages
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/p2d
ENV PATH=/opt/p2d/bin:$PATH
WORKDIR /source
COPY pyproject.toml constraints.txt ./
# Dependencies before the source: they are gigabytes, and change far less often.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --requirement requirements.txt
COPY README.md ./
COPY prune2deploy prune2deploy
RUN pip install --constraint constraints.txt --no-deps .

FROM packages AS packages-gpu
ARG GPU_EXTRAS="trt-rtx"
RUN pip install --constraint constraints.txt ".[${GPU_EXTRAS}]"

FROM ${BASE} AS runtime
RUN groupadd --gid 10001 p2d \
    && useradd --uid 10001 --gid 10001 --create-home p2d \
    && install --directory --owner 10001 --group 10001 /workspace
# USER and the folder for matplotlib also serve a container that is started under another user id.
ENV PATH=/opt/p2d/bin:$PATH PYTHONUNBUFFERED=1 USER=p2d MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /workspace
USER 10001:10001
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["p2d", "doctor", "--quiet"]
ENTRYPOINT ["p2d"]
CMD ["--help"]

FROM runtime AS cpu
COPY --from=packages /opt/p2d /opt/p2d

FROM runtime AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/p2d /opt/p2d
