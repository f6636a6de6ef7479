# IPC-Direct: `make demo` on a bare Debian 12 machine with Rust installs what is missing, builds, measures and
# prints a table; `make test` runs the tests, `make test-all` also the long ones. `make help` lists the rest.

CARGO ?= cargo
# Where cargo puts things; the programs below find the product's binaries there.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
export IPC_DIRECT_BIN_DIR := $(TARGET)/release
# Which request queue the tests' cards have, unless a test asks for one: per-process, shared or hybrid.
ifdef QUEUE
export IPC_DIRECT_REQUEST_QUEUE := $(QUEUE)
endif
PRODUCT := -p ipc-direct -p nic-coordinator -p ipc-direct-shim
# What is run over the other request queues, too: what asks the coordinator for something.
OTHER_QUEUES := per-process shared
QUEUE_CASES := accept:: connect:: fork::
# How many lcores the tests' cards have, unless a test asks for a number: LCORES=2.
ifdef LCORES
export IPC_DIRECT_LCORES := $(LCORES)
endif
E2E := exports conformance c pipes programs operator namespaces lab faults idle

.PHONY: help setup build demo test test-all test-unit test-loom test-e2e test-hosts test-each-queue test-lcores test-queues test-pci test-rdma arm64 deb suites random matrix
.PHONY: simulate scale mutants
.PHONY: bench bench-build bench-hosts bench-queues bench-quick criterion guard baseline fmt lint clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the system packages that are missing (DPDK, libclang, redis, curl, ...)
	@scripts/setup

build: setup ## Build target/release/{ipc-direct,nic-coordinator,libipc_direct.so}
	$(CARGO) build --release $(PRODUCT)

demo: bench-build ## Measure redis over kernel TCP, AF_UNIX and IPC-Direct; write target/demo.json
	$(TARGET)/release/demo $(TARGET)/demo.json

test: test-unit test-loom test-e2e test-hosts test-each-queue test-lcores ## Run every test but the long ones

test-all: test test-pci test-rdma suites random ## Also the long parts: the card behind PCI, two hosts with RDMA, programs' own tests, ten minutes of random programs

test-unit: setup ## Unit, property and integration tests of every crate
	$(CARGO) test --workspace --exclude ipc-direct-tests

test-loom: setup ## Every interleaving of the ring's algorithms that matters
	RUSTFLAGS="--cfg loom" $(CARGO) test -p ipc-direct-ring --release --target-dir $(TARGET)/loom --test loom

test-e2e: build ## Socket semantics against the kernel's, real programs, faults, idle (QUEUE=shared: over that request queue)
	$(CARGO) test -p ipc-direct-tests $(addprefix --test ,$(E2E))
	RANDOM_SECONDS=0 $(CARGO) test -p ipc-direct-tests --test random

test-hosts: build ## The TCP cases between two hosts of a lab, over a good network and one that loses 2 % of the cards' datagrams
	@for network in good lossy; do \
		IPC_DIRECT_TEST_HOSTS=$$network $(CARGO) test -p ipc-direct-tests --test conformance -- --test-threads=6 || exit; \
	done

test-each-queue: build ## The cases of set-up calls over the request queues that are not the default
	@for queue in $(OTHER_QUEUES); do for cases in $(QUEUE_CASES); do \
		IPC_DIRECT_REQUEST_QUEUE=$$queue $(CARGO) test -q -p ipc-direct-tests --test conformance -- $$cases || exit; \
	done; done

test-lcores: build ## The same cases, and clients killed on each request queue, with a card of LCORES=2 lcores
	@export IPC_DIRECT_LCORES=$(or $(LCORES),2); for cases in $(QUEUE_CASES); do \
		$(CARGO) test -q -p ipc-direct-tests --test conformance -- $$cases || exit; \
	done; QUEUE_SECONDS=5 $(CARGO) test -q -p ipc-direct-tests --test faults -- queues::

test-queues: build ## Kill clients at random points under load, on each request queue for SECONDS=300
	QUEUE_SECONDS=$(or $(SECONDS),300) $(CARGO) test -p ipc-direct-tests --test faults -- queues:: --nocapture

test-pci: build ## A card behind real PCI BARs: QEMU's ivshmem, agent and redis in a guest, the coordinator outside
	@scripts/guest pci $(TARGET)/guest $(IPC_DIRECT_BIN_DIR)
	IPC_DIRECT_GUEST_DIR=$(TARGET)/guest $(CARGO) test -p ipc-direct-tests --test pci

test-rdma: build ## Two hosts with RDMA: guests of QEMU with soft-RoCE, joined by an Ethernet
	$(CARGO) build --release -p fabric --bin fabric-check -p ipc-direct-tests --bin transfer
	@scripts/guest rdma $(TARGET)/guest-rdma $(IPC_DIRECT_BIN_DIR) $(addprefix $(IPC_DIRECT_BIN_DIR)/,fabric-check transfer)
	IPC_DIRECT_GUEST_DIR=$(TARGET)/guest-rdma $(CARGO) test -p ipc-direct-tests --test rdma

arm64: build ## Cross-build the coordinator for 64-bit Arm; its tests and whole sessions with it under qemu-user
	@scripts/arm64 $(TARGET)/arm64
	@scripts/guest pci $(TARGET)/guest $(IPC_DIRECT_BIN_DIR)
	@scripts/arm64-sessions $(TARGET)/arm64

deb: setup ## Write the Debian package of the coordinator for the card, target/arm64/ipc-direct-card_*_arm64.deb
	@scripts/arm64 $(TARGET)/arm64 --no-tests
	@scripts/deb-card $(TARGET)/arm64

suites: build ## Redis's, memcached's and Python's own tests, on the kernel and under the shim
	$(CARGO) test -p ipc-direct-tests --test suites

random: build ## Random programs against the kernel for SECONDS=600, from SEED=... or a fresh one
	$(if $(SEED),RANDOM_SEED=$(SEED) )RANDOM_SECONDS=$(or $(SECONDS),600) $(CARGO) test -p ipc-direct-tests --test random

simulate: setup ## Many hosts on virtual time, with every kind of fault, for SECONDS=300 from SEED=... or a fresh one
	$(if $(SEED),SIMULATE_SEED=$(SEED) )SIMULATE_SECONDS=$(or $(SECONDS),300) $(CARGO) test --release -p nic-coordinator --test simulation for_a_while -- --nocapture

scale: setup ## What docs/scale.md says: control traffic, memory and set-ups with 2 to HOSTS=1000 hosts
	SIMULATE_SCALE=$(or $(HOSTS),1000) $(CARGO) test --release -p nic-coordinator --test simulation table -- --nocapture

mutants: setup ## Plant mistakes in a copy of the coordinator's logic: the simulation must catch each
	@scripts/mutants $(TARGET)/mutants

matrix: build ## Write docs/support.md from what the conformance suite shows
	IPC_DIRECT_TEST_MATRIX=write $(CARGO) test -p ipc-direct-tests --test conformance

bench: bench-build ## Every row of the speed goals beside the kernel and a raw ring: ARGS="--quick", ARGS="redis pipe", ARGS=--list
	$(TARGET)/release/bench --out $(TARGET)/bench $(ARGS)

bench-queues: bench-build ## The three request queues beside each other and the kernel, with plots: ARGS="--quick", ARGS="latency lock", ARGS=--list
	$(TARGET)/release/bench-queues --out $(TARGET)/bench/queues $(ARGS)

bench-hosts: bench-build ## Between two hosts of a lab: kernel TCP, libfabric alone, IPC-Direct (root): ARGS=--quick, ARGS="stream connect", ARGS=--list
	$(TARGET)/release/bench-hosts --out $(TARGET)/bench $(ARGS)

bench-build: build
	$(CARGO) build --release -p ipc-direct-benches --bins

bench-quick: bench-build ## Check the promised ping-pong ratios (20x blocking, 10x epoll)
	$(TARGET)/release/bench-check

criterion: ## The stream ring and the request queues alone, by criterion
	$(CARGO) bench -p ipc-direct-benches --bench stream --bench queues

guard: bench-build ## Count the instructions of the hot calls, against benches/baseline.json
	$(TARGET)/release/bench-guard

baseline: bench-build ## Write benches/baseline.json anew: only on purpose
	$(TARGET)/release/bench-guard --write

fmt: ## Format the sources
	$(CARGO) fmt

lint: setup ## Format check and clippy, warnings as errors
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

clean: ## Remove everything that was built
	$(CARGO) clean
