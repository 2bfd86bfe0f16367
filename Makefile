# What a checkout needs: a Rust toolchain (rust-version in Cargo.toml), git, make and, for everything but `lint` and
# `quick`, root on Debian 12 or 13. The tests and the demo run containerds of their own below target/lab; nothing of
# the system is configured, only DEPS are installed.

# For bindings, for linking, for loading file systems, runc's one library, for a file system in a file, for TLS, for
# screens, for shell scripts, and to check the unit.
DEPS := protobuf-compiler gcc libc6-dev kmod libseccomp2 e2fsprogs openssl tmux shellcheck systemd

# The program for any Linux of this machine's kind, linked with musl.
STATIC := $(shell uname -m)-unknown-linux-musl

# What the manifests call the image.
IMAGE := $(shell sed -n 's/^ *image: //p' examples/kubernetes/base/daemonset.yaml)

# Makes Debian packages; at the version that this was tried with.
CARGO_DEB := 3.8.0
TOOLS := target/tools/cargo-deb-$(CARGO_DEB)

# With storage of its own, for the time of the build.
BUILDAH := buildah --root $(CURDIR)/target/buildah --runroot $(CURDIR)/target/buildah/run --storage-driver vfs

# All programs with one set of features, so that the demo and the tests share one build of what they depend on.
BUILD := cargo build --workspace --bins --examples

.PHONY: test demo quick lint static check-static check-stargz check-chart image deb check-deb deps build lab clean-lab

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

# ring has some C, which uses no library: the compiler for glibc will do.
static: export CC_$(subst -,_,$(STATIC)) := gcc
static: deps
	rustup target add $(STATIC)
	cargo build --release --target $(STATIC)

# The static program on a real containerd.
check-static: static lab
	cargo test --test node -- --ignored --exact release::the_static_program

# A real stargz snapshotter, which the first run compiles: about two minutes, and 170 MB of packages.
check-stargz: lab
	cargo test --test node -- --ignored stargz::

# The Helm chart, by a program of Go's templates, which the first run compiles: a minute, and 170 MB of packages.
check-chart: lab
	cargo test --test node -- --ignored kubernetes::chart::

# The Debian package, in target/debian.
deb: static $(TOOLS)/bin/cargo-deb
	rm -rf target/deb target/debian
	mkdir -p target/deb/man target/deb/completions target/deb/systemd
	target/$(STATIC)/release/nri-unpack man-pages target/deb/man
	for shell in bash zsh fish; do \
		target/$(STATIC)/release/nri-unpack completions $$shell >target/deb/completions/$$shell || exit; \
	done
	sed 's|/usr/local/bin/|/usr/bin/|' systemd/nri-unpack.service >target/deb/systemd/nri-unpack.service
	$(TOOLS)/bin/cargo-deb deb --no-build --target $(STATIC) --output target/debian/

# Installs it, and takes it away, on a systemd and a file system that are not the machine's.
check-deb: deb lab
	cargo test --test node -- --ignored --exact release::the_package

$(TOOLS)/bin/cargo-deb:
	cargo install --quiet cargo-deb --version $(CARGO_DEB) --locked --root $(TOOLS) --target-dir target/tools/build
	rm -rf target/tools/build

# The container image as an archive, for `skopeo copy` or `ctr images import`. No registry is asked.
image: static
	@command -v buildah >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends buildah >/dev/null; }
	install -D -t target/image target/$(STATIC)/release/nri-unpack
	rm -f target/nri-unpack.oci.tar
	$(BUILDAH) build --isolation chroot --tag $(IMAGE) --file examples/kubernetes/Containerfile target/image
	$(BUILDAH) push $(IMAGE) oci-archive:target/nri-unpack.oci.tar:$(IMAGE)
	$(BUILDAH) rmi --all

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
