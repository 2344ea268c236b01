# Planwave in a container: the locked packages from one stage, the code on top, nobody's root.

FROM python:3.13-slim AS packages
ENV PIP_NO_CACHE_DIR=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install uv==0.13.9
# At the path that it has in the image below: a venv does not move.
WORKDIR /srv/planwave
COPY requirements.lock ./
RUN uv venv .venv && uv pip install --no-cache --python .venv --require-hashes -r requirements.lock

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/planwave planwave
WORKDIR /srv/planwave
COPY --from=packages /srv/planwave/.venv .venv
COPY alembic.ini ./
COPY migrations migrations
COPY app app
ENV PATH=/srv/planwave/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PLANWAVE_LOG_FORMAT=json \
    PLANWAVE_DATABASE_URL=sqlite:////var/lib/planwave/planwave.db
RUN python -m compileall -q app migrations
USER planwave
VOLUME /var/lib/planwave
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "app.cli"]
# In a container 0.0.0.0 is the only useful address. Who comes in is decided by how the port is published:
# docker run -p 127.0.0.1:8000:8000 keeps it to this machine.
CMD ["serve", "--host", "0.0.0.0", "--allow-unauthenticated"]
