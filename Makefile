# `make demo` shows Weir, `make check` is for every commit, `make test` is what CI runs. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Static binaries: against musl where its target and its C compiler are installed, else against glibc. The tests are linked in the same
# way, so that cargo compiles every crate once for the tests and the images.
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
MUSL := $(subst -gnu,-musl,$(HOST))
STATIC_TARGET := $(if $(and $(wildcard $(shell rustc --print sysroot 2>/dev/null)/lib/rustlib/$(MUSL)),$(shell command -v musl-gcc)),$(MUSL),$(HOST))
STATIC := RUSTFLAGS="-C target-feature=+crt-static"
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
STATIC_DIR := $(TARGET_DIR)/$(STATIC_TARGET)
PLUGIN_TARGET := $(shell scripts/plugin-target)
PLUGIN_BUILD := RUSTFLAGS="$(shell scripts/plugin-target flags)" cargo build --locked --profile dist-plugin --target $(PLUGIN_TARGET)
PLUGIN_DIR := $(TARGET_DIR)/$(PLUGIN_TARGET)/dist-plugin
# Absolute, so that benches and tests find it from any directory.
DIST := $(CURDIR)/dist
export WEIR_ENVOY ?= $(CURDIR)/target/tools/envoy
export WEIR_GOTEMPLATE ?= $(CURDIR)/target/tools/gotemplate/gotemplate
export KUBEBUILDER_ASSETS ?= $(CURDIR)/target/tools/apiserver

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

# A release archive that is unpacked here has the binaries: then nothing is compiled.
PREBUILT := $(firstword $(wildcard weir-*-linux-$(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))/weir-demo))

.PHONY: demo
ifneq ($(PREBUILT),)
demo:
	$(MAKE) -C $(dir $(PREBUILT)) demo
else
demo: tools ## inject a real manifest, program a real namespace, show captured connections (root)
	cargo build --locked --profile demo -p weir-demo -p weir-webhook
	$(PLUGIN_BUILD) -p weir-cni
	mkdir -p $(DIST)/demo
	install -m 0755 $(TARGET_DIR)/demo/weir-demo $(TARGET_DIR)/demo/weir-webhook $(PLUGIN_DIR)/weir-cni $(DIST)/demo/
	$(DIST)/demo/weir-demo $(DEMO_ARGS)
endif

.PHONY: check
check: lint test-unit ## formatting, lints, unit tests

.PHONY: test
test: test-tools lint doc manifests fuzz-smoke test-unit test-e2e test-cluster ## everything that CI checks

.PHONY: lint
lint: ## formatting and lints
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: test-unit
test-unit: ## unit tests
	$(STATIC) cargo test --locked --workspace --target $(STATIC_TARGET) --lib --bins --no-fail-fast

# The binaries that tests run, and images of them.
.PHONY: test-binaries
test-binaries: test-tools
	$(STATIC) cargo build --locked --workspace --target $(STATIC_TARGET) --lib --bins --tests
	scripts/build-images $(STATIC_DIR)/debug $(DIST)/images-dev

.PHONY: test-e2e
test-e2e: test-binaries ## tests of whole binaries: real namespaces, runtimes, API servers, images (root)
	WEIR_IMAGES=$(DIST)/images-dev WEIR_BIN_DIR=$(abspath $(STATIC_DIR))/debug $(STATIC) \
	  cargo test --locked --workspace --exclude weir-cluster --target $(STATIC_TARGET) --test '*' --no-fail-fast

.PHONY: cluster
cluster: cluster-tools ## start a Kubernetes cluster of three nodes, with istiod, on this machine (root)
	$(STATIC) cargo build --locked --target $(STATIC_TARGET) -p weir-cluster --bins
	$(STATIC_DIR)/debug/weir-cluster up

.PHONY: cluster-down
cluster-down: ## remove that cluster
	$(STATIC) cargo build --locked --target $(STATIC_TARGET) -p weir-cluster --bins
	$(STATIC_DIR)/debug/weir-cluster down

# A cluster of its own; WEIR_CLUSTER_KEEP=1 leaves it and the namespaces of the tests for a look. What hangs ends
# with the bound.
CLUSTER_BOUND := $(if $(filter all,$(WEIR_CLUSTER)),60m,12m)
.PHONY: test-cluster
test-cluster: cluster-tools test-binaries ## scenarios on that cluster: traffic, kinds of pods; WEIR_CLUSTER=all adds operations (root)
	$(if $(filter all,$(WEIR_CLUSTER)),scripts/build-previous)
	status=0; export CI=true WEIR_IMAGES=$(DIST)/images-dev WEIR_BIN_DIR=$(abspath $(STATIC_DIR))/debug $(STATIC); \
	{ $(STATIC_DIR)/debug/weir-cluster up && timeout --kill-after=30s $(CLUSTER_BOUND) \
	  cargo test --locked --workspace --target $(STATIC_TARGET) --test scenarios -- --test-threads=4; } || status=$$?; \
	[ -n "$${WEIR_CLUSTER_KEEP:-}" ] || $(STATIC_DIR)/debug/weir-cluster down || status=$$?; \
	[ $$status != 124 ] || echo "the scenarios took longer than $(CLUSTER_BOUND)" >&2; exit $$status

.PHONY: soak
soak: test-tools ## ten minutes of a hostile tenant, then ten of transitions of a node in both modes, with release binaries (root, control groups)
	cargo build --release --locked -p weir-webhook -p weir-agent -p weir-cni
	WEIR_BIN_DIR=$(abspath $(TARGET_DIR))/release WEIR_HOSTILE_SECONDS=600 \
	  cargo test --release --locked -p weir-tests --test it hostile::honest -- --nocapture
	WEIR_BIN_DIR=$(abspath $(TARGET_DIR))/release WEIR_CONTINUOUS_SECONDS=600 \
	  cargo test --release --locked -p weir-tests --test it continuous::no_bypass_or_failure_on_containerd_2_1 -- --nocapture

.PHONY: scale
scale: test-tools dist ## 1,000 nodes and 50,000 pods on a real API server, with release binaries: reviews, agents, weir check (root, half an hour)
	cargo build --release --locked -p weir-scale
	$(TARGET_DIR)/release/weir-scale --size full --bin-dir $(DIST) --json $(DIST)/scale.json

.PHONY: doc
doc: ## documentation, without warnings; links and anchors of all pages
	scripts/site check
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet

.PHONY: site
site: ## the documentation as a site, in dist/site (mdBook)
	scripts/site build $(DIST)/site

.PHONY: manifests
manifests: ## render the manifests and validate them offline
	manifests/validate.sh

.PHONY: fuzz-smoke
fuzz-smoke: ## fuzz targets, a bounded number of inputs each (FUZZ_RUNS)
	scripts/fuzz-smoke

.PHONY: workflows
workflows: ## lint the workflows of GitHub (Go)
	go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.7

.PHONY: deny
deny: ## licences, sources, duplicates and advisories of the dependencies
	scripts/deny

.PHONY: reproducible
reproducible: ## build weir-cni in two folders and compare the bytes
	scripts/reproducible

.PHONY: dist
dist: ## weir, weir-webhook, weir-agent and the static weir-cni and weir-iptables in dist/
	cargo build --release --locked -p weir-cli -p weir-webhook -p weir-agent
	$(PLUGIN_BUILD) -p weir-cni -p weir-iptables
	mkdir -p $(DIST)
	install -m 0755 $(addprefix $(TARGET_DIR)/release/,weir weir-webhook weir-agent) \
	  $(addprefix $(PLUGIN_DIR)/,weir-cni weir-iptables) $(DIST)/

.PHONY: images
images: ## images FROM scratch of static binaries, as OCI archives in dist/images-dist/; HUB=registry.example/weir names them
	scripts/install-tools images
	$(STATIC) cargo build --locked --profile dist --target $(STATIC_TARGET) -p weir-cli -p weir-webhook -p weir-agent
	$(PLUGIN_BUILD) -p weir-cni -p weir-iptables
	mkdir -p $(DIST)/static
	install -m 0755 $(addprefix $(STATIC_DIR)/dist/,weir weir-webhook weir-agent) \
	  $(addprefix $(PLUGIN_DIR)/,weir-cni weir-iptables) $(DIST)/static/
	HUB=$(HUB) scripts/build-images $(DIST)/static $(DIST)/images-dist

.PHONY: release
release: ## what a release publishes, for amd64 and arm64, in dist/release/
	scripts/install-tools release
	scripts/release $(DIST)/release

.PHONY: bench
bench: tools dist ## measurements beside the alternatives, in the same run (root)
	$(PLUGIN_BUILD) -p weir-benches --bin netns-floor
	WEIR_CNI=$(DIST)/weir-cni NETNS_FLOOR=$(abspath $(STATIC_DIR))/dist-plugin/netns-floor WEIR_WEBHOOK=$(DIST)/weir-webhook \
	  WEIR_AGENT=$(DIST)/weir-agent cargo bench -p weir-benches

.PHONY: tools
tools: ## install what the demo needs
	scripts/install-tools

.PHONY: test-tools
test-tools: ## install what the tests need beyond that: newer containerds, CRI-O, buildah and Kubernetes
	scripts/install-tools tests

.PHONY: cluster-tools
cluster-tools: ## install what the cluster needs beyond that: CoreDNS, Istio, Prometheus, Helm, a client of gRPC
	scripts/install-tools cluster

.PHONY: clean
clean: ## remove what was built
	cargo clean
	rm -rf $(DIST)
