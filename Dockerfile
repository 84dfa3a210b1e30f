# Two targets, cpu and gpu: docker build --target cpu -t p2d:cpu .    (docs/docker.md says more)
#
# BASE         a slim image with Python 3.11 to 3.13 as `python`
# TORCH_INDEX  an additional package index for torch; one that serves CPU builds keeps CUDA out of the cpu target
# GPU_EXTRAS   extras of pyproject.toml that the gpu target installs: trt-rtx, trt, or both
# GPU_INDEX    an additional package index for those extras; trt needs NVIDIA's own
# GPU_PACKAGES Debian packages of the gpu target: torch.compile needs a C++ compiler and Python's headers
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
ARG GPU_INDEX=""
RUN pip install --constraint constraints.txt ${GPU_INDEX:+--extra-index-url "$GPU_INDEX"} ".[${GPU_EXTRAS}]"

FROM ${BASE} AS runtime
# Any user may write the caches: containers are often started under the id of whoever owns the mounted folder.
RUN groupadd --gid 10001 p2d \
    && useradd --uid 10001 --gid 10001 --create-home p2d \
    && install --directory --owner 10001 --group 10001 /workspace \
    && install --directory --mode 1777 /cache
# USER and the folder for matplotlib also serve a container that is started under another user id.
ENV PATH=/opt/p2d/bin:$PATH PYTHONUNBUFFERED=1 USER=p2d MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/cache \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor TRITON_CACHE_DIR=/cache/triton
WORKDIR /workspace
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["p2d", "doctor", "--quiet"]
ENTRYPOINT ["p2d"]
CMD ["--help"]

FROM runtime AS cpu
COPY --from=packages /opt/p2d /opt/p2d
USER 10001:10001

FROM runtime AS gpu
ARG GPU_PACKAGES="g++ libc6-dev"
RUN if [ -n "$GPU_PACKAGES" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends $GPU_PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/p2d /opt/p2d
USER 10001:10001
# Timing caches, kernels that torch compiled and downloaded weights outlive the container.
VOLUME /cache
# Healthy only where the GPU answers: without it ONNX Runtime would run on the CPU, and nobody would notice.
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s CMD ["python", "-c", \
    "from prune2deploy.engines.cuda import CudaDevice, find_device; raise SystemExit(not isinstance(find_device(), CudaDevice))"]
