# Names for what the scripts do; `make help` lists them. The logic is in scripts/.

.PHONY: help demo test soak bench fmt clippy doc clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## shows Walgate at work on throwaway servers (PostgreSQL and Rust are all it needs)
	@scripts/setup
	@cargo build --release
	@target/release/walgate demo

test: ## all tests, against a real PostgreSQL and a real Kafka that it starts and stops
	@scripts/test

soak: ## random schemas, rules, transactions and kills, for ten minutes or WALGATE_SOAK_SECONDS
	@WALGATE_SOAK_SEED=$${WALGATE_SOAK_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} \
	  WALGATE_SOAK_SECONDS=$${WALGATE_SOAK_SECONDS:-600} scripts/test --test it soak:: -- --nocapture

bench: ## the measurements of docs/performance.md, on this machine
	@scripts/bench

fmt: ## formats the source
	@cargo fmt

clippy: ## what the linter says, as the checks in .ci/run ask it
	@cargo clippy --all-targets -- -D warnings

doc: ## the library's documentation, into target/doc
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

clean: ## removes what was built
	@cargo clean
