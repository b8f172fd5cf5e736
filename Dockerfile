# The worker on Cloud Run. Two stages: the first installs and compiles, the second is what runs.

# Where Docker Hub's images are fetched: itself, or a mirror, as deploy/deploy.sh makes one. Each image is named by its digest, so a
# mirror can hand out no other, and a newer base is a change of this file, and so a new image.
ARG DOCKER_HUB=docker.io
FROM ${DOCKER_HUB}/library/python:3.11-slim-trixie@sha256:da047cb8f9d1d98e5c070f5300ba9f7274e33b8fc0e5be5ed88740aed1b95ba9 AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock ./
# Wheels only: nothing is compiled, so no compiler is needed and the image is the same everywhere.
RUN /venv/bin/pip install --require-hashes --only-binary=:all: -r requirements.lock
COPY publisher/ publisher/
COPY worker/ worker/
# The service's user cannot write here, so it would compile every module at every cold start.
RUN /venv/bin/python -m compileall -q publisher worker

FROM ${DOCKER_HUB}/litestream/litestream:0.5.17@sha256:4b02b9859a6b6b4087d8b8944e15f7e984bd7957cba322bbeee38b0e27b9656a AS litestream

FROM ${DOCKER_HUB}/library/python:3.11-slim-trixie@sha256:da047cb8f9d1d98e5c070f5300ba9f7274e33b8fc0e5be5ed88740aed1b95ba9
RUN groupadd --gid 10001 solowriter \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin solowriter \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
COPY --from=litestream /usr/local/bin/litestream /usr/local/bin/litestream
COPY --from=build /venv /venv
COPY --from=build /app /app
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATABASE_PATH=/data/users.db \
    HOST=0.0.0.0 \
    PORT=8080
WORKDIR /app
# 0:0 for a deployment with DATA_SIZE alone: its volume is root's, so its command begins as root, and becomes 10001 before Python.
ARG RUN_AS=10001:10001
USER ${RUN_AS}
EXPOSE 8080
# Without a shell: the process is PID 1 and gets SIGTERM itself, which is what the last confirmation and the release hang on.
CMD ["python", "-m", "worker", "serve"]
