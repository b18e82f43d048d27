# The daemon's image: the locked runtime packages and one wheel of this project, nothing that builds or tests.
#   docker build -t runwarden . && docker run --env-file runwarden.env -p 8080:8080 runwarden
# `docker run … runwarden migrate` brings the schema up to date.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# The packages first: this layer is made again only when the lock changes.
COPY ops/locks/runtime.txt ops/locks/build.txt ops/locks/
RUN python -m venv /opt/runwarden \
    && /opt/runwarden/bin/pip install --require-hashes --only-binary :all: -r ops/locks/runtime.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r ops/locks/build.txt

COPY pyproject.toml README.md ./
COPY daemon daemon
COPY gateway_client gateway_client
COPY schema schema
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/runwarden/bin/pip install --no-deps /tmp/wheel/*.whl \
    && /opt/runwarden/bin/pip uninstall --yes pip

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home --home-dir /var/lib/runwarden --shell /usr/sbin/nologin runwarden
COPY --from=build /opt/runwarden /opt/runwarden
ENV PATH=/opt/runwarden/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RUNWARDEN_HOST=0.0.0.0 \
    RUNWARDEN_PORT=8080
# A number, so that Kubernetes can see that it is not root.
USER 10001
WORKDIR /var/lib/runwarden
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen(f\"http://127.0.0.1:{os.environ['RUNWARDEN_PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["runwarden"]
CMD ["serve"]
