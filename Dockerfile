FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY app app
COPY contracts contracts
COPY migrations migrations
RUN python -m venv /opt/farebox \
 && /opt/farebox/bin/pip install --no-cache-dir --constraint requirements.lock .

FROM python:3.12-slim
RUN useradd --system --create-home --home-dir /var/lib/farebox --uid 8402 farebox
COPY --from=build /opt/farebox /opt/farebox
ENV PATH=/opt/farebox/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FAREBOX_SERVER_HOST=0.0.0.0
USER farebox
WORKDIR /var/lib/farebox
VOLUME /var/lib/farebox
EXPOSE 8402
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8402/readyz', timeout=2)"]
# SIGTERM lets streams finish or be billed: give it longer than server.shutdown_timeout_s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["farebox"]
CMD ["serve"]
