# syntax=docker/dockerfile:1

# Two images from one file: `node` (the default, a validator) and `trainer` (the same with scikit-learn, for trying out).
#
#   docker build -t quorate .
#   docker build -t quorate-trainer --target trainer .

ARG BASE=python:3.11-slim-bookworm

# --- what needs pip, and is left behind --------------------------------------------------------------------------------
FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/quorate
WORKDIR /src
# requirements.txt pins; what is installed is only what pyproject.toml asks for.
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY chain chain
COPY consensus consensus
COPY fl fl
COPY node node
COPY cli cli
COPY quorate quorate
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint requirements.txt setuptools wheel \
 && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/quorate/bin/python install --only-binary ':all:' --constraint requirements.txt \
        "quorate[node] @ file://$(echo /wheels/quorate-*.whl)"

FROM build AS build-trainer
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/quorate/bin/python install --only-binary ':all:' --constraint requirements.txt scikit-learn
COPY deploy/digits.toml /opt/quorate/share/digits.toml

# --- what both images share --------------------------------------------------------------------------------------------
FROM ${BASE} AS base
# A fixed number, so that volumes keep their owner from one image to the next. The directories exist with that owner
# because a new volume takes over what the image has at its place.
RUN groupadd --system --gid 10001 quorate \
 && useradd --system --uid 10001 --gid quorate --home-dir /var/lib/quorate --no-create-home --shell /usr/sbin/nologin \
        quorate \
 && install -d -o quorate -g quorate -m 0700 /var/lib/quorate /var/cache/quorate /validator /keys /client \
        /network /network/keys /network/v0 /network/v1 /network/v2 /network/v3
ENV PATH=/opt/quorate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/cache/quorate/numba \
    QUORATE_HOME=/var/lib/quorate/client
WORKDIR /var/lib/quorate
STOPSIGNAL SIGTERM
USER 10001:10001
ENTRYPOINT ["quorate"]

FROM base AS trainer
COPY --from=build-trainer /opt/quorate /opt/quorate

FROM base AS node
COPY --from=build /opt/quorate /opt/quorate
# Compiled here once, so that a new container's first round need not wait for it.
RUN python -c "from fl.kernels.golden import check_golden; check_golden()"
ENV QUORATE_CONFIG=/var/lib/quorate/node.toml
EXPOSE 7600 7601 7680 7681
# Ready is more than alive: executed up to the newest certificate, linked to a quorum, not draining.
HEALTHCHECK --interval=15s --start-interval=2s --start-period=60s --timeout=10s --retries=4 \
    CMD ["quorate", "node", "ready"]
CMD ["node", "start"]
