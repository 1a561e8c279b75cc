# One image for every Holdfast process: the commands of docker-compose.yml pick which.

FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/holdfast
# The dependencies change seldom and Holdfast often, so they are a layer of their own.
COPY requirements-runtime.lock ./
RUN /opt/holdfast/bin/python -m pip install --require-hashes -r requirements-runtime.lock
COPY pyproject.toml README.md ./
COPY models ./models
COPY migrations ./migrations
COPY worker ./worker
# What only installs things does not belong in a running container.
RUN /opt/holdfast/bin/python -m pip install --no-deps --no-build-isolation . \
 && /opt/holdfast/bin/python -m compileall -q /opt/holdfast/lib \
 && /opt/holdfast/bin/python -m pip uninstall --yes setuptools pip

FROM python:3.11-slim
# A number, so that an orchestrator can see that it is not root.
RUN groupadd --gid 10001 holdfast \
 && useradd --uid 10001 --gid 10001 --home-dir /home/holdfast --create-home --shell /usr/sbin/nologin holdfast
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOLDFAST_LOG_JSON=true
USER 10001:10001
WORKDIR /home/holdfast
STOPSIGNAL SIGTERM
ENTRYPOINT ["holdfast"]
CMD ["--help"]
