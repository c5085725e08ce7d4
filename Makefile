# `make` lists the targets.
CARGO ?= cargo
MINUTES ?= 10

.PHONY: images help run demo test chaos mutants upgrade model soak scale observing durable bench profile instructions check count-lines openapi
# $(call need,a program,how to install it)
need = @command -v $(1) >/dev/null || { echo "this needs $(1): $(2)"; exit 1; }
# Optimised, but built in a fraction of the time of a release.
QUICK_RELEASE = CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## start the three services on ports 3001, 3002 and 3003, until Ctrl-C; AUTH=on turns sign-in on
	@$(CARGO) run --locked -p system-tests --bin run

demo: ## show and check what the system guarantees, with the three services
	@$(CARGO) run --locked -p system-tests --bin demo

test: ## run every test; THOROUGH=1 runs chaos longer and crash points with more seeds, as CI does
	@.ci/test

chaos: ## run the chaos test for MINUTES=10 with a new seed
	CHAOS_MINUTES=$(MINUTES) TEST_SEED=$${TEST_SEED:-$$(date +%s)} REQUIRE_POSTGRES=1 $(CARGO) test --locked -p system-tests --test chaos

mutants: ## test the tests: apply eight known bugs, one after the other, and check that a test sees each
	@system-tests/mutants/run

upgrade: ## replace the previous release by this one and back, under load; needs PostgreSQL, HAProxy and the history of git
	@previous=$$(system-tests/previous) && PREVIOUS_BINARIES=$$previous REQUIRE_POSTGRES=1 REQUIRE_HAPROXY=1 \
		$(CARGO) test-all --test rolling --test recovery release -- --nocapture

model: ## search the states of order placement with three concurrent attempts; takes a release build and a minute
	$(CARGO) test --locked --release -p order-service --test model -- --nocapture

soak: ## repeat the tests of faults and load for MINUTES=10 with release builds and new seeds
	@system-tests/soak $(MINUTES)

scale: ## compare response times with a million rows to those with a thousand; needs PostgreSQL
	@$(QUICK_RELEASE) $(CARGO) bench --locked -p system-tests --bench scale

observing: ## measure the cost of logs, metrics and traces
	@variant=$$($(QUICK_RELEASE) system-tests/patched system-tests/variants/uncounted.patch --release) && \
		VARIANT_BINARIES=$$variant $(QUICK_RELEASE) $(CARGO) bench --locked -p system-tests --bench observing

durable: ## measure orders per second over PostgreSQL beside pgbench, with and without batching; needs PostgreSQL and wrk
	$(call need,wrk,apt-get install wrk)
	@variant=$$($(QUICK_RELEASE) system-tests/patched system-tests/variants/one-by-one.patch --release) && \
		VARIANT_BINARIES=$$variant $(QUICK_RELEASE) $(CARGO) bench --locked -p system-tests --bench durable

bench: ## measure the services with wrk; writes a table and two plots into docs/
	$(call need,wrk,apt-get install wrk)
	@$(CARGO) bench --locked -p system-tests --bench bench

profile: ## draw a flame graph of order-service under load, with perf and inferno
	$(call need,wrk,apt-get install wrk)
	$(call need,perf,apt-get install linux-perf; without root: sysctl kernel.perf_event_paranoid=1)
	$(call need,inferno-flamegraph,cargo install inferno)
	@RUSTFLAGS="-C force-frame-pointers=yes" $(QUICK_RELEASE) \
		$(CARGO) bench --locked --target-dir target/profiling -p system-tests --bench profile

instructions: ## count the instructions per request and compare them with the committed figures; UPDATE_INSTRUCTIONS=1 replaces them
	$(call need,valgrind,apt-get install valgrind)
	@system-tests/instructions

check: ## check format, lints, documentation, architecture rules and the number of lines, as before a commit
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p product-service -p order-service --features product-service/fault-injection,order-service/fault-injection -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	.ci/invariants
	@.ci/count-lines

count-lines: ## count the lines of production Rust per crate
	@.ci/count-lines

images: ## build the images of the three services with Docker, and write the SBOM of each into target/images
	$(call need,docker,apt-get install docker.io)
	@deploy/images

openapi: ## write the OpenAPI documents after an intended change of the API
	UPDATE_OPENAPI=1 $(CARGO) test -q --locked $(addprefix -p ,$(wildcard *-service)) --test api document
