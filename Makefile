# Two commands are enough: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The plugin is linked statically: against musl where its target is installed, else against glibc.
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
MUSL := $(subst -gnu,-musl,$(HOST))
STATIC_TARGET := $(if $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(MUSL)),$(MUSL),$(HOST))
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
STATIC_DIR := $(TARGET_DIR)/$(STATIC_TARGET)/dist-plugin
# Absolute, so that benches and tests find it from any directory.
DIST := $(CURDIR)/dist
export WEIR_ENVOY ?= $(CURDIR)/target/tools/envoy
export KUBEBUILDER_ASSETS ?= $(CURDIR)/target/tools/apiserver

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

.PHONY: demo
demo: tools dist ## inject a real manifest, program a real namespace, show captured connections (root)
	$(DIST)/weir demo $(DEMO_ARGS)

# cargo has built all binaries, with the features that the whole workspace asks for, before it runs the first test: they are not built again.
.PHONY: test
test: test-tools lint doc manifests fuzz-smoke ## everything CI checks
	$(MAKE) images IMAGE_PROFILE=dev
	WEIR_IMAGES=$(DIST)/images-dev WEIR_BIN_DIR=$(abspath $(TARGET_DIR))/debug cargo test --workspace --no-fail-fast

.PHONY: lint
lint: ## formatting and lints
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: doc
doc: ## documentation, without warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet

.PHONY: manifests
manifests: ## render the manifests and validate them offline
	manifests/validate.sh

.PHONY: fuzz-smoke
fuzz-smoke: ## fuzz targets, a bounded number of inputs each (FUZZ_RUNS)
	scripts/fuzz-smoke

.PHONY: deny
deny: ## licences, sources and duplicates of the dependencies (installs cargo-deny)
	command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny@0.20.2
	cargo deny check licenses bans sources

.PHONY: dist
dist: ## weir, weir-webhook, weir-agent and the static weir-cni in dist/
	cargo build --release -p weir-cli -p weir-webhook -p weir-agent
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile dist-plugin --target $(STATIC_TARGET) -p weir-cni
	mkdir -p $(DIST)
	install -m 0755 $(TARGET_DIR)/release/weir $(TARGET_DIR)/release/weir-webhook $(TARGET_DIR)/release/weir-agent $(STATIC_DIR)/weir-cni $(DIST)/

# What the images carry: `dist` where they are shipped, `dev` where only the tests want them, in a third of the time.
IMAGE_PROFILE ?= dist
IMAGE_PLUGIN_PROFILE := $(IMAGE_PROFILE:dist=dist-plugin)
BUILT_FOR_IMAGES := $(TARGET_DIR)/$(STATIC_TARGET)
IMAGE_BINARIES := $(DIST)/static-$(IMAGE_PROFILE)
IMAGES := $(DIST)/images-$(IMAGE_PROFILE)

.PHONY: images
images: test-tools ## images FROM scratch of static binaries, as OCI archives in dist/images-dist/ (buildah)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile $(IMAGE_PROFILE) --target $(STATIC_TARGET) -p weir-cli -p weir-webhook -p weir-agent
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile $(IMAGE_PLUGIN_PROFILE) --target $(STATIC_TARGET) -p weir-cni
	mkdir -p $(IMAGE_BINARIES)
	install -m 0755 $(addprefix $(BUILT_FOR_IMAGES)/$(IMAGE_PROFILE:dev=debug)/,weir weir-webhook weir-agent) $(BUILT_FOR_IMAGES)/$(IMAGE_PLUGIN_PROFILE:dev=debug)/weir-cni $(IMAGE_BINARIES)/
	scripts/build-images $(IMAGE_BINARIES) $(IMAGES)

.PHONY: bench
bench: tools dist ## measurements beside the alternatives, in the same run (root)
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile dist-plugin --target $(STATIC_TARGET) -p weir-benches --bin netns-floor
	WEIR_CNI=$(DIST)/weir-cni NETNS_FLOOR=$(abspath $(STATIC_DIR))/netns-floor WEIR_WEBHOOK=$(DIST)/weir-webhook WEIR_AGENT=$(DIST)/weir-agent cargo bench -p weir-benches

.PHONY: tools
tools: ## install what the demo needs
	scripts/install-tools

.PHONY: test-tools
test-tools: ## install what the demo and the tests need: also newer containerds, CRI-O, buildah and a kube-apiserver
	scripts/install-tools tests

.PHONY: clean
clean: ## remove what was built
	cargo clean
	rm -rf $(DIST)
