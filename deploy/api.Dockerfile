# The API, and the migration. From the top of the checkout:
#   docker build -f deploy/api.Dockerfile -t batchyard-api:0.1.0 .

FROM python:3.11-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/batchyard \
 && /opt/batchyard/bin/pip install --no-cache-dir --constraint requirements.lock ".[producer]"

FROM python:3.11-slim
COPY --from=build /opt/batchyard /opt/batchyard
ENV PATH=/opt/batchyard/bin:$PATH
# A user with a name: some libraries ask for it. The manifests run as the same number.
RUN useradd --uid 10001 --user-group --no-create-home batchyard
USER 10001:10001
ENTRYPOINT ["batchyard"]
CMD ["api"]
