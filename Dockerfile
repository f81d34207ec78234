# Walgate in an image: built from this folder, run as a user that may do nothing else.
#
#   docker build -t walgate .
#   docker run --rm -v "$PWD/replication.toml:/etc/walgate/replication.toml:ro" walgate check

FROM rust:1.89.0-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin walgate && strip --strip-debug target/release/walgate

FROM debian:12.11-slim
# What TLS to PostgreSQL, Kafka and S3 is verified against.
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin walgate
COPY --from=build /build/target/release/walgate /usr/local/bin/walgate
USER 10001
WORKDIR /etc/walgate
EXPOSE 9187
# SIGTERM drains for limits.drain_timeout: `docker stop --time` must be longer.
ENTRYPOINT ["walgate"]
CMD ["run"]
