# The image contains retl and no project: mount one at /project. It contains no secrets:
# pass them in the environment, or as files with the *_FILE variables.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements.lock requirements-dev.lock ./
RUN python -m venv /venv && /venv/bin/pip install --require-hashes -r requirements.lock
# The build tool is locked too. It is not part of the final image.
RUN python -m venv /tools && /tools/bin/pip install --require-hashes -r requirements-dev.lock
COPY pyproject.toml README.md LICENSE retl.yml ./
COPY src src
COPY sql sql
COPY docs/errors.md docs/errors.md
COPY syncs syncs
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /venv/bin/pip install --no-deps dist/*.whl

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --no-create-home --home-dir /project retl \
 && install --directory --owner=retl --group=retl --mode=0755 /project \
 && install --directory --owner=retl --group=retl --mode=0700 /project/.retl
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 RETL_PROJECT=/project
WORKDIR /project
USER 10001:10001
VOLUME /project/.retl
ENTRYPOINT ["retl"]
CMD ["--help"]
