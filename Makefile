# The verbs of this repository. `make` alone lists them.

CARGO   ?= cargo
PREFIX  ?= /usr/local
CNI_BIN ?= /opt/cni/bin
DESTDIR ?=
FUZZ_SECONDS ?= 3600

TARGET  := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
RELEASE := target/$(TARGET)/release
DEBUG   := target/$(TARGET)/debug
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DIST    := flannel-rs-$(VERSION)-$(TARGET)
# Directories with the programs in the image, one for each processor.
PROGRAMS ?= $(RELEASE)
# Archives of one commit are the same bytes whoever packs them.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
PACK    := $(CARGO) run --quiet --release --package image -- --release $(VERSION) --time $(SOURCE_DATE_EPOCH)
SBOM    := $(CARGO) metadata --format-version 1 --locked --filter-platform $(TARGET) >target/metadata.json && \
  $(PACK) sbom --metadata target/metadata.json --out dist/flannel-rs-$(VERSION).cdx.json flanneld plugins flannelctl
# How tests of the real kernel are run: as root, by sudo, or in a user namespace (see .ci/as-root).
AS_ROOT := --config 'target."cfg(unix)".runner = "$(CURDIR)/.ci/as-root"'
# How tests are run on a distribution's kernel (see .ci/vm), and which: those that kernels disagree about.
IN_VM    := --config 'target."cfg(unix)".runner = "$(CURDIR)/.ci/vm"'
VM_TESTS := dataplane firewall attach
# Of the stories those about what a kernel of before 6.2 does not do.
VM_STORIES := udp_fallbacks::a_card udp::a_narrower_path
# Those that are about numbers or lapse of time, not about what a kernel can do.
VM_SKIPS := ten_thousand_peers a_hundred_killed_plugins sixty_four_pods leases_are_kept_for_as_long_as_their_pods_live

.PHONY: help setup build demo cluster cluster-down test test-unit test-lab test-vm check fuzz bench bench-compare release image chart install clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Install what tests and benches need, if it is missing (apt-get)
	@.ci/setup

build: ## Build static release binaries: flanneld, flannel-cni, flannelctl
	$(CARGO) build --release --bin flanneld --bin flannel-cni --bin flannelctl

demo: build ## Watch three nodes form one pod network, break, and heal
	@$(RELEASE)/flannelctl lab demo

cluster: setup ## Bring up a Kubernetes cluster of two nodes to play with, and say how
	@$(CARGO) build --quiet --workspace --bins
	@.ci/as-root $(DEBUG)/test-cluster up $(CLUSTER)

cluster-down: ## Take the cluster down
	@[ -x $(DEBUG)/test-cluster ] || $(CARGO) build --quiet --package flannel-rs-tests --bins
	@.ci/as-root $(DEBUG)/test-cluster down

test: test-unit test-lab test-vm ## Run all tests

test-unit: ## Run the tests that need nothing
	$(CARGO) test --workspace --lib --bins

test-lab: setup ## Run the tests that need the real kernel: network namespaces, etcd
	$(CARGO) build --workspace --bins
	$(CARGO) $(AS_ROOT) test --workspace --no-fail-fast --test '*'

test-vm: setup ## Run the tests of plugins, kernel and udp in a small virtual machine with Debian's kernel
	$(CARGO) $(IN_VM) test --workspace --no-fail-fast $(VM_TESTS:%=--test %) -- $(VM_SKIPS:%=--skip %)
	$(CARGO) build --bin flanneld --bin flannel-cni
	$(CARGO) $(IN_VM) test --package flannel-rs-tests --no-fail-fast --test stories -- $(VM_STORIES)

check: ## Check formatting, lints and documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@# The documentation is for those who work on this: it shows private items, and may link to them.
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --workspace --no-deps --document-private-items

fuzz: ## Fuzz what reads packets of others, FUZZ_SECONDS=3600 each (nightly Rust; installs cargo-fuzz)
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@cd fuzz && for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; done

BENCHES ?= traffic convergence pass repair cni kubernetes cluster
bench: setup build ## Measure everything; tables, target/bench.json and benches/charts (see benches/README.md)
	$(CARGO) build --release --workspace --bins
	@rm -f target/bench.json
	@failed=; for bench in $(BENCHES); do \
		BENCH_JSON=$(CURDIR)/target/bench.json .ci/as-root $(RELEASE)/bench-$$bench || failed="$$failed $$bench"; done; \
	$(RELEASE)/bench-report target/bench.json benches/charts > target/bench.md || exit 1; \
	[ -z "$$failed" ] || { echo "bench: these failed, see above:$$failed" >&2; exit 1; }
	@echo "Tables of the whole run: target/bench.md. To keep it: cp target/bench.json benches/results.json"

BEFORE ?= benches/results.json
AFTER  ?= target/bench.json
bench-compare: ## Compare two runs of `make bench`: BEFORE=benches/results.json AFTER=target/bench.json
	$(CARGO) build --release -p flannel-rs-benches --bin bench-report
	@$(RELEASE)/bench-report $(BEFORE) $(AFTER)

release: build ## Pack the release binaries into dist/
	@rm -rf dist/$(DIST) && mkdir -p dist/$(DIST)
	@cp $(RELEASE)/flanneld $(RELEASE)/flannel-cni $(RELEASE)/flannelctl dist/$(DIST)/
	@cp LICENSE README.md CHANGELOG.md deploy/flanneld.service deploy/mk-docker-opts.sh deploy/kube-flannel.yml \
	  dist/$(DIST)/
	@$(SBOM) && cp dist/flannel-rs-$(VERSION).cdx.json dist/$(DIST)/
	@tar -C dist -czf dist/$(DIST).tar.gz $(DIST)
	@ls -l dist/$(DIST) dist/$(DIST).tar.gz

install: ## Install the release binaries, plugins and systemd unit (PREFIX, CNI_BIN, DESTDIR)
	install -D -t $(DESTDIR)$(PREFIX)/bin $(RELEASE)/flanneld $(RELEASE)/flannelctl
	@# Plugins of others that are there already are left alone and named, which is no failure here.
	-@$(RELEASE)/flannelctl cni install --no-conf --dir $(DESTDIR)$(CNI_BIN)
	install -D -t $(DESTDIR)$(PREFIX)/bin deploy/mk-docker-opts.sh
	install -D -m 644 deploy/flanneld.service $(DESTDIR)/etc/systemd/system/flanneld.service

image: build ## Pack the release binaries into a container image in dist/ (IMAGE, PROGRAMS for more processors)
	@mkdir -p dist
	@$(PACK) image $(IMAGE:%=--name %) --revision "$$(git rev-parse HEAD 2>/dev/null)" \
	  --out dist/flannel-rs-$(VERSION)-image.tar $(PROGRAMS)
	@$(SBOM)

chart: ## Check the Helm chart and pack it into dist/ (needs Go, once, for Helm)
	@mkdir -p dist
	@helm=$$(.ci/helm)/helm && $$helm lint --strict --quiet deploy/chart/flannel && \
	  $$helm package --destination dist deploy/chart/flannel

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf dist
