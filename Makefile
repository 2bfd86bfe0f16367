# What a checkout needs: a Rust toolchain (rust-version in Cargo.toml), git, make and, for everything but `lint` and
# `quick`, root on Debian 12 or 13. The tests and the demo run containerds of their own below target/lab; nothing of
# the system is configured, only DEPS are installed.

# For bindings, for linking, for loading file systems, runc's one library, for a file system in a file, for TLS, for
# screens, for shell scripts, and to check the unit.
DEPS := protobuf-compiler gcc libc6-dev kmod libseccomp2 e2fsprogs openssl tmux shellcheck systemd

# The machine that the static program, the package and the image are for: `make image ARCH=aarch64` on x86-64.
ARCH := $(shell uname -m)

# The program for any Linux of that kind, linked with musl; and Debian's word for the kind, which is also Go's.
STATIC := $(ARCH)-unknown-linux-musl
DEB_ARCH := $(patsubst x86_64,amd64,$(patsubst aarch64,arm64,$(ARCH)))

# ring has some C, which uses no library: the compiler for glibc will do. For another kind of machine it also links, and
# an emulator runs the program while a package is made, and in tests.
ifeq ($(ARCH),$(shell uname -m))
STATIC_CC := gcc
else
STATIC_CC := $(ARCH)-linux-gnu-gcc
EMULATOR := qemu-$(ARCH)
DEPS += gcc-$(subst _,-,$(ARCH))-linux-gnu libc6-dev-$(DEB_ARCH)-cross qemu-user
endif

# What the manifests call the image.
IMAGE := $(shell sed -n 's/^ *image: //p' examples/kubernetes/base/daemonset.yaml)

# Programs of cargo's, at the versions that this was tried with: for Debian packages, for the rules of deny.toml, for
# the list of what a program consists of, and for the fuzzers.
CARGO_DEB := target/tools/cargo-deb-3.8.0
CARGO_DENY := target/tools/cargo-deny-0.20.2
CARGO_CYCLONEDX := target/tools/cargo-cyclonedx-0.5.9
CARGO_FUZZ := target/tools/cargo-fuzz-0.13.1

# What `make deny` checks. `advisories` needs a git repository on the internet.
DENY := advisories bans licenses sources

# The fuzzers. They need what only a nightly compiler has: without one, RUSTC_BOOTSTRAP=1 enables it in the stable compiler.
FUZZERS := $(sort $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))))
NIGHTLY := $(if $(shell rustup toolchain list 2>/dev/null | grep nightly),cargo +nightly,RUSTC_BOOTSTRAP=1 cargo)

# With storage of its own, for the time of the build.
BUILDAH := buildah --root $(CURDIR)/target/buildah --runroot $(CURDIR)/target/buildah/run --storage-driver vfs

# All programs with one set of features, so that the demo and the tests share one build of what they depend on.
BUILD := cargo build --workspace --bins --examples

.PHONY: test demo quick lint fuzz fuzz-quick kills static check-static check-arm64 check-stargz check-chart image deb check-deb deny release deps build lab clean-lab

# The main job, with and without the plugin.
demo: lab
	@target/debug/examples/demo

# Everything but measurements.
test: lab
	cargo test --workspace

# For the time of writing: no daemon, no root.
quick: deps
	cargo test --workspace --lib --test plugin

lint: deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

# Each fuzzer for ten minutes, or for 20 seconds. What they find stays in fuzz/found, and inputs that fail in
# fuzz/artifacts. The corpus is replayed by `make quick`, too.
fuzz: FOR := 600
fuzz-quick: FOR := 20
fuzz fuzz-quick: deps $(CARGO_FUZZ)
	for target in $(FUZZERS); do \
		mkdir -p fuzz/found/$$target; \
		PATH=$(CURDIR)/$(CARGO_FUZZ)/bin:$$PATH $(NIGHTLY) fuzz run --sanitizer none $$target \
			fuzz/found/$$target fuzz/corpus/$$target -- -max_total_time=$(FOR) -rss_limit_mb=512 -timeout=10 \
			-print_final_stats=1 || exit; \
	done

# Kills of the plugin, containerd and the snapshotter, in some 25 minutes. The same command goes on where it was stopped:
# target/kills.json has what was done. Remove it, or name another NRI_UNPACK_SEED, to begin again. `make kills KILLS=1000`
# makes 500 more. The logs are in target/kills.log.
kills: KILLS := 500
kills: lab
	NRI_UNPACK_KILLS=$(KILLS) cargo test --test node -- --ignored --exact kills::many --nocapture >target/kills.log

static: export CC_$(subst -,_,$(STATIC)) := $(STATIC_CC)
static: export CARGO_TARGET_$(shell echo $(STATIC) | tr a-z- A-Z_)_LINKER := $(STATIC_CC)
static: deps
	rustup target add $(STATIC)
	cargo build --release --target $(STATIC)

# The static program on a real containerd.
check-static: static lab
	cargo test --test node -- --ignored --exact release::the_static_program

# The same for arm64 on x86-64, with the emulator.
check-arm64: lab
	$(MAKE) static ARCH=aarch64
	cargo test --test node -- --ignored --exact release::the_program_for_arm64

# A real stargz snapshotter, which the first run compiles: about two minutes, and 170 MB of packages.
check-stargz: lab
	cargo test --test node -- --ignored stargz::

# The Helm chart, by a program of Go's templates, which the first run compiles: a minute, and 170 MB of packages.
check-chart: lab
	cargo test --test node -- --ignored kubernetes::chart::

# The Debian package, in target/debian.
deb: static $(CARGO_DEB)
	rm -rf target/deb target/debian
	mkdir -p target/deb/man target/deb/completions target/deb/systemd
	$(EMULATOR) target/$(STATIC)/release/nri-unpack man-pages target/deb/man
	for shell in bash zsh fish; do \
		$(EMULATOR) target/$(STATIC)/release/nri-unpack completions $$shell >target/deb/completions/$$shell || exit; \
	done
	sed 's|/usr/local/bin/|/usr/bin/|' systemd/nri-unpack.service >target/deb/systemd/nri-unpack.service
	$(CARGO_DEB)/bin/cargo-deb deb --no-build --target $(STATIC) --output target/debian/

# Installs it, and takes it away, on a systemd and a file system that are not the machine's.
check-deb: deb lab
	cargo test --test node -- --ignored --exact release::the_package

# NAME-VERSION; each takes some minutes.
target/tools/cargo-%:
	tool=$(@F); cargo install --quiet $${tool%-*} --version $${tool##*-} --locked --root $@.part --target-dir target/tools/build
	rm -rf target/tools/build
	mv $@.part $@

# The container image as an archive, for `skopeo copy` or `ctr images import`. No registry is asked.
image: static
	@command -v buildah >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends buildah >/dev/null; }
	install -D -t target/image target/$(STATIC)/release/nri-unpack
	rm -f target/nri-unpack.oci.tar
	$(BUILDAH) build --isolation chroot --platform linux/$(DEB_ARCH) --tag $(IMAGE) --file examples/kubernetes/Containerfile target/image
	$(BUILDAH) push $(IMAGE) oci-archive:target/nri-unpack.oci.tar:$(IMAGE)
	$(BUILDAH) rmi --all

# What the dependencies may be: licences, sources, known faults.
deny: $(CARGO_DENY)
	$(CARGO_DENY)/bin/cargo-deny check $(DENY)

# Everything that a release publishes, in target/publish: docs/releasing.md.
release: $(CARGO_DEB) $(CARGO_CYCLONEDX)
	CYCLONEDX=$(CURDIR)/$(CARGO_CYCLONEDX)/bin/cargo-cyclonedx BUILDAH="$(BUILDAH)" .ci/release

# Asks apt only for what dpkg does not have, so that it needs neither root nor a network the second time.
deps:
	@missing=$$(for p in $(DEPS); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	[ -z "$$missing" ] || { \
		echo "Installing Debian packages:" $$missing; \
		[ "$$(id -u)" = 0 ] || { echo "This takes root. Run: sudo make deps" >&2; exit 1; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing >/dev/null; }

build: deps
	$(BUILD)

# The containerds and their helpers, once: 160 MB to download, 480 MB on disk.
lab: build
	@target/debug/lab fetch

# What tests that were killed left running or mounted; the next test run does it too.
clean-lab: build
	target/debug/lab clean
