# Mesozoic. `make demo` shows what it does, `make test` proves it; `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where the state of `make up` lives.
export MESOZOIC_LAB ?= $(CURDIR)/target/lab
export PATH := $(PATH):/usr/sbin:/sbin
TARGET := $(or $(CARGO_TARGET_DIR),target)
ISTIOCTL := $(TARGET)/release/istioctl

.PHONY: help setup build demo test up down bench sweep soak lint fmt golden clean-tools

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what this machine lacks (does nothing twice)
	@hack/setup.sh

build: setup ## Build every binary, optimised
	cargo build --release --workspace --bins --locked

demo: build ## A mesh with Bookinfo, every failure experiment, the report in target/report/
	$(ISTIOCTL) demo --report-dir $(TARGET)/report

test: setup ## Every test: pure, over loopback, with the real Envoy, and end to end in a lab
	@hack/test.sh

up: build ## Bring a lab with Bookinfo up and leave it running
	$(ISTIOCTL) lab up --bookinfo

down: ## Take the lab of `make up` down
	$(ISTIOCTL) lab down

bench: build ## Measure, beside the goals
	@hack/bench.sh goals
	@hack/bench.sh large

sweep: build ## Measure how pushes grow with proxies and services; draws docs/pilot-push-*.svg
	@hack/bench.sh sweep

soak: build ## Ten minutes of changes while proxies come and go: no leak, nobody left behind
	@hack/bench.sh soak

lint: setup ## What CI checks before the tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --locked
	@hack/orphans.sh
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; else echo "lint: cargo-deny is not installed; licences and advisories were not checked"; fi

fmt: ## Format the code
	cargo fmt --all

golden: setup ## Refresh the golden files of Pilot's generators
	UPDATE_GOLDEN=1 cargo test --locked -p pilot-generate
