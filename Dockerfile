# One image for every Python part of the stack: MLflow, init, workers, replicas, tools.
#
# Everything is installed here, by the hashes of the lock file; nothing is when a container starts.
# The base is pinned by its full tag. A digest would pin it further:
#   docker build --build-arg PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:... .
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/podium
ENV PATH=/opt/podium/bin:$PATH
# First what changes seldom: a change of Podium's own code does not fetch TensorFlow again.
COPY requirements-team.lock /tmp/
RUN pip install --require-hashes --no-deps -r /tmp/requirements-team.lock
# GPU=1 adds the CUDA libraries of this very TensorFlow (3 GiB), by version and not by hash. Profile
# gpu needs them. Not tried where this was written: there was no Docker engine with a GPU.
ARG GPU=
RUN test -z "$GPU" || pip install "tensorflow[and-cuda]==$(pip show tensorflow | sed -n 's/^Version: //p')"
COPY LICENSE README.md pyproject.toml /src/
COPY mlops /src/mlops
COPY registry /src/registry
COPY experiments /src/experiments
RUN pip install --no-build-isolation --no-deps /src

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0.dev0
# What the image is built from, for the runs that are made in it, where no git can tell:
#   docker compose build --build-arg COMMIT=$(git describe --always --abbrev=40 --dirty --exclude '*')
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="Podium" \
      org.opencontainers.image.description="Search, compare, promote, serve: a team's stack" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
# A fixed number: files on volumes belong to it, whatever image comes next. The folders are made here
# because a new volume takes its owner from the folder of the image that it is mounted at.
RUN groupadd --gid 10001 podium \
 && useradd --uid 10001 --gid podium --home-dir /home/podium --shell /usr/sbin/nologin podium \
 && install -d -o podium -g podium -m 0700 \
    /home/podium /home/podium/.mlflow /var/lib/podium /backups /scratch \
 && install -d -o podium -g podium -m 0750 /run/secrets
COPY --from=build /opt/podium /opt/podium
# Nothing is sent anywhere, nothing is written beside the code, and what has no folder of its own
# writes under /tmp: the root file system is read-only.
ENV PATH=/opt/podium/bin:$PATH \
    HOME=/home/podium \
    MLOPS_HOME=/var/lib/podium \
    PODIUM_COMMIT=${COMMIT} \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true \
    AWS_EC2_METADATA_DISABLED=true \
    GIT_PYTHON_REFRESH=quiet \
    KERAS_HOME=/tmp/keras \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=3
USER 10001:10001
WORKDIR /
# docker-compose.yml has a health check for each service; there is none that fits all.
HEALTHCHECK NONE
CMD ["podium", "--help"]
