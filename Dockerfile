# One image for all parts: `pulsegate api`, `pulsegate worker`, `pulsegate scheduler`; docs/deployment.md.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/pulsegate
COPY pyproject.toml constraints.txt README.md ./
COPY engine engine
COPY lua lua
COPY api api
COPY workers workers
COPY loadtest loadtest
RUN /opt/pulsegate/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM python:3.11-slim
RUN groupadd --gid 10001 pulsegate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pulsegate \
    && install -d -o 10001 -g 10001 /var/lib/pulsegate/spool /var/lib/pulsegate/lake
COPY --from=build /opt/pulsegate /opt/pulsegate
COPY plans.toml /etc/pulsegate/plans.toml
ENV PATH=/opt/pulsegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PULSEGATE_HOST=0.0.0.0 \
    PULSEGATE_PORT=8080 \
    PULSEGATE_PLANS_FILE=/etc/pulsegate/plans.toml \
    PULSEGATE_SPOOL_DIR=/var/lib/pulsegate/spool
USER 10001:10001
WORKDIR /var/lib/pulsegate
EXPOSE 8080
STOPSIGNAL SIGTERM
# Of the API, which is what the image runs unless told otherwise; docker-compose.yml has those of the other parts.
# /healthz, not /readyz: with Redis away the API still lets viewers pass, and must not be restarted for that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; urlopen('http://127.0.0.1:' + os.environ['PULSEGATE_PORT'] + '/healthz', timeout=3)"]
ENTRYPOINT ["pulsegate"]
CMD ["api"]
