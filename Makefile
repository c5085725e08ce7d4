# What there is to do here. `make` alone lists it.
CARGO ?= cargo

.PHONY: help run demo test chaos mutants model soak scale observing durable bench profile instructions check openapi
MINUTES ?= 10
# $(call need,a program,how to get it)
need = @command -v $(1) >/dev/null || { echo "this needs $(1): $(2)"; exit 1; }

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the three services on ports 3001, 3002 and 3003, until Ctrl-C
	@$(CARGO) run --locked -p system-tests --bin run

demo: ## what the system promises, told and checked with the three real services
	@$(CARGO) run --locked -p system-tests --bin demo

test: ## every test
	$(CARGO) test --locked --workspace

chaos: ## customers and PostgreSQL, and everything killed again and again, for MINUTES=10, with a new seed
	CHAOS_MINUTES=$(MINUTES) TEST_SEED=$${TEST_SEED:-$$(date +%s)} REQUIRE_POSTGRES=1 $(CARGO) test --locked -p system-tests --test chaos

mutants: ## whether the tests see what they are for: eight mistakes, each made on purpose, and what is said of it
	@system-tests/mutants

model: ## the search of order placement with three attempts at once, which takes a release build and a minute
	$(CARGO) test --locked --release -p order-service --test model -- --nocapture

soak: ## what breaks, again and again for MINUTES=10 with release builds and new seeds, and what was measured
	@system-tests/soak $(MINUTES)

scale: ## what calls cost among a million users, products and orders, against a thousand; needs PostgreSQL
	@CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 $(CARGO) bench --locked -p system-tests --bench scale

observing: ## what log lines and metrics cost, against none
	@CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 $(CARGO) bench --locked -p system-tests --bench observing

durable: ## what it is worth that orders share calls and commits, against each on its own; needs PostgreSQL
	@CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 $(CARGO) bench --locked -p system-tests --bench durable

bench: ## what the services do on this machine, with wrk: a table and a plot, written into docs/
	$(call need,wrk,apt-get install wrk)
	@$(CARGO) bench --locked -p system-tests --bench bench

profile: ## a flame graph of order-service under load, with perf and inferno
	$(call need,wrk,apt-get install wrk)
	$(call need,perf,apt-get install linux-perf; who is not root: sysctl kernel.perf_event_paranoid=1)
	$(call need,inferno-flamegraph,cargo install inferno)
	@RUSTFLAGS="-C force-frame-pointers=yes" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		$(CARGO) bench --locked --target-dir target/profiling -p system-tests --bench profile

instructions: ## count the instructions of each kind of request and compare with the committed counts; UPDATE_INSTRUCTIONS=1 replaces them
	$(call need,valgrind,apt-get install valgrind)
	@system-tests/instructions

check: ## what has to be clean before a commit: format, lints, documentation, the walls of the house
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p product-service -p order-service --features product-service/sabotage,order-service/sabotage -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	.ci/invariants

openapi: ## write the OpenAPI documents anew, after the API was changed on purpose
	UPDATE_OPENAPI=1 $(CARGO) test -q --locked -p user-service -p product-service -p order-service --test api document
