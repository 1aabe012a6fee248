# tokenyard on CPUs, for any user id: nothing is written outside /tmp.
#   docker build -t tokenyard:cpu .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:50051:50051 -p 127.0.0.1:8000:8000 tokenyard:cpu

FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/tokenyard
WORKDIR /src
# The CPU build, 190 MB, from the index that the Makefile names; PyPI's brings 2.7 GB of CUDA.
COPY Makefile constraints.txt ./
RUN /opt/tokenyard/bin/pip install --no-cache-dir --no-deps \
    --index-url "$(sed -n 's/^TORCH_CPU_INDEX ?= //p' Makefile)" "torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu"
COPY pyproject.toml README.md LICENSE ./
COPY experts experts
COPY router_svc router_svc
COPY cluster cluster
RUN /opt/tokenyard/bin/pip install --no-cache-dir -c constraints.txt .
# For every processor of this kind, since the machine that runs the image need not be like the one that builds it.
ENV TOKENYARD_KERNEL_CACHE=/opt/tokenyard/kernels
RUN mkdir "$TOKENYARD_KERNEL_CACHE" && cd / && /opt/tokenyard/bin/python -m cluster.kernels --all

FROM python:3.11-slim-bookworm
# The kernels use OpenMP.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/tokenyard /opt/tokenyard
ENV PATH=/opt/tokenyard/bin:$PATH TOKENYARD_KERNEL_CACHE=/opt/tokenyard/kernels PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 50051 8000
ENTRYPOINT ["tokenyard"]
CMD ["serve", "--host", "0.0.0.0"]
