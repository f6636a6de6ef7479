# IPC-Direct: `make demo` on a bare Debian 12 machine with Rust installs what is missing, builds, measures and
# prints a table; `make test` runs the tests, `make test-all` also the long ones. `make help` lists the rest.

CARGO ?= cargo
# Where cargo puts things; the programs below find the product's binaries there.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
export IPC_DIRECT_BIN_DIR := $(TARGET)/release
PRODUCT := -p ipc-direct -p nic-coordinator -p ipc-direct-shim
E2E := exports conformance c pipes programs operator namespaces faults idle

.PHONY: help setup build demo test test-all test-unit test-loom test-e2e suites random matrix bench-quick bench fmt lint clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the system packages that are missing (DPDK, libclang, redis, curl, ...)
	@scripts/setup

build: setup ## Build target/release/{ipc-direct,nic-coordinator,libipc_direct.so}
	$(CARGO) build --release $(PRODUCT)

demo: build ## Measure redis over kernel TCP, AF_UNIX and IPC-Direct; write target/demo.json
	$(CARGO) build --release -p ipc-direct-benches --bins
	$(TARGET)/release/demo $(TARGET)/demo.json

test: test-unit test-loom test-e2e ## Run every test but the long ones

test-all: test suites random ## Also the long parts: programs' own tests, ten minutes of random programs

test-unit: setup ## Unit, property and integration tests of every crate
	$(CARGO) test --workspace --exclude ipc-direct-tests

test-loom: setup ## Every interleaving of the ring's algorithms that matters
	RUSTFLAGS="--cfg loom" $(CARGO) test -p ipc-direct-ring --release --target-dir $(TARGET)/loom --test loom

test-e2e: build ## Socket semantics against the kernel's, real programs, faults, idle
	$(CARGO) test -p ipc-direct-tests $(addprefix --test ,$(E2E))
	RANDOM_SECONDS=0 $(CARGO) test -p ipc-direct-tests --test random

suites: build ## Redis's, memcached's and Python's own tests, on the kernel and under the shim
	$(CARGO) test -p ipc-direct-tests --test suites

random: build ## Random programs against the kernel for SECONDS=600, from SEED=... or a fresh one
	$(if $(SEED),RANDOM_SEED=$(SEED) )RANDOM_SECONDS=$(or $(SECONDS),600) $(CARGO) test -p ipc-direct-tests --test random

matrix: build ## Write docs/support.md from what the conformance suite shows
	IPC_DIRECT_TEST_MATRIX=write $(CARGO) test -p ipc-direct-tests --test conformance

bench-quick: build ## Check the promised ping-pong ratios (20x blocking, 10x epoll)
	$(CARGO) build --release -p ipc-direct-benches --bins
	$(TARGET)/release/bench-check

bench: ## The ring alone, by criterion
	$(CARGO) bench -p ipc-direct-benches --bench stream

fmt: ## Format the sources
	$(CARGO) fmt

lint: setup ## Format check and clippy, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

clean: ## Remove everything that was built
	$(CARGO) clean
