# syntax=docker/dockerfile:1
# The factsync binary on Debian, run by a user without privileges. State lives in /var/lib/factsync: mount a volume there.

FROM rust:1.89-slim-bookworm AS build
# The allocator is built with make.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# Registry and dependencies are kept between builds; the binary is copied out because a cache mount is no part of the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin factsync && cp target/release/factsync /usr/local/bin/factsync

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/factsync --create-home factsync
COPY --from=build /usr/local/bin/factsync /usr/local/bin/factsync
USER factsync
# The default state directory, ./factsync-state, is below it.
WORKDIR /var/lib/factsync
VOLUME /var/lib/factsync
EXPOSE 7878
# `status` asks the process at 127.0.0.1:7878; a first snapshot may take its time before that answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["factsync", "status"]
ENTRYPOINT ["factsync"]
CMD ["--help"]
