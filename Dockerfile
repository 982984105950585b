# The GPU image: NVIDIA's PyTorch image with this project in it.
#
#   docker build --tag ultralong:gpu .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 ultralong:gpu ultralong doctor
#
# torch, CUDA, NCCL, Transformer Engine, Apex and FlashAttention are the image's own: what pip may
# install is bound to the versions that are there, and the build fails if one of them changes.
# A tag can be moved, a digest cannot: --build-arg BASE_DIGEST=sha256:... takes that image or none.
ARG BASE=nvcr.io/nvidia/pytorch:25.10-py3
ARG BASE_DIGEST=
# hadolint ignore=DL3006
FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}

ARG MEGATRON_CORE=0.19.2
# NVIDIA's image binds pip to its own list, which would refuse ours. PYTHONNOUSERSITE: pyxis and
# apptainer bring the user's home, and packages in its ~/.local would stand before these. TF32: the
# image lets torch take its 10 bits for products of float32, such as transformers' rotary angles.
ENV PIP_CONSTRAINT= \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONNOUSERSITE=1 \
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=0 \
    PYTHONUNBUFFERED=1
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Requirements first, out of setup.py alone: a change of code or pages does not install them again.
WORKDIR /opt/ultralong
COPY docker/install.sh docker/constraints.py docker/
COPY requirements requirements
COPY setup.py ./
RUN MEGATRON_CORE=${MEGATRON_CORE} docker/install.sh requirements
COPY . .
# Where a site maps users into the container (pyxis, apptainer) theirs is taken instead of this one.
RUN docker/install.sh package && useradd --create-home --shell /bin/bash --uid 10001 ultralong
USER 10001
WORKDIR /home/ultralong

# Starts no ranks and makes no CUDA context: a run may have filled the GPUs.
HEALTHCHECK --interval=5m --timeout=2m --start-period=1m --retries=2 \
    CMD ["ultralong", "doctor", "--no-communication", "--no-gpus"]
CMD ["ultralong", "doctor"]
