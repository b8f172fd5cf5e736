# The worker on Cloud Run. Two stages: the first installs and compiles, the second is what runs.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /app
RUN python -m venv /venv
COPY requirements.lock ./
# Wheels only: nothing is compiled, so no compiler is needed and the image is the same everywhere.
RUN /venv/bin/pip install --require-hashes --only-binary=:all: -r requirements.lock
COPY litestream.yml ./
COPY publisher/ publisher/
COPY worker/ worker/
# The service's user cannot write here, so it would compile every module at every cold start.
RUN /venv/bin/python -m compileall -q publisher worker

FROM litestream/litestream:0.5.17 AS litestream

FROM python:3.11-slim-bookworm
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
USER 10001:10001
EXPOSE 8080
# Without a shell: the process is PID 1 and gets SIGTERM itself, which is what the last confirmation and the release hang on.
CMD ["python", "-m", "worker", "serve"]
