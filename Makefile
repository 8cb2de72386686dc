# Builds the programs and what a VM boots into out/, in the layout that `make install` copies:
#
#   out/bin/vmm                              the command; finds ../share/vmm
#   out/share/vmm/kernels/default/vmlinux    the kernel of every container that asks for no other
#   out/share/vmm/kernels/um/vmlinux         the same as a process, for hosts without virtualization
#   out/share/vmm/initfs.cpio                vminitd, PID 1 of every VM
#   out/share/vmm/images/                    images that come with it: busybox
#   out/share/vmm/manifest.json              what all of these are, by hashes, and what they were made of
#
# out/build/ holds what is not installed, out/test/ what only the tests use, out/bench/ what measures,
# out/kernels/ other kernels.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=

# Kernels are built once and kept here, by the hash of what they are made of. Nothing in it is irreplaceable.
VMM_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmm
# A tarball of the kernel's source, instead of the distribution's package; and of the kernel um's, of a newer series.
KERNEL_SOURCE ?=
UM_KERNEL_SOURCE ?=
# How often make soak lets everything happen.
ROUNDS ?= 10
RUNS ?= 1000
# How long make fuzz looks at each target, in seconds; the one target it looks at; a file for that and nothing else.
FUZZ_SECONDS ?= 60
FUZZ ?=
FUZZ_INPUT ?=
export VMM_CACHE KERNEL_SOURCE UM_KERNEL_SOURCE
# cargo and the kernel's build decide for themselves how much to run at once, and do it in turn.
unexport MAKEFLAGS MFLAGS

SHARE := out/share/vmm
IMAGEBUILDER := out/build/imagebuilder
ORIGINS := out/build/origins
STATIC := target/static/x86_64-unknown-linux-musl/release
PROGRAMS := out/bin/vmm out/build/vminitd $(IMAGEBUILDER) out/test/guest-tools/vsock-probe \
	out/test/guest-tools/hostile-init out/test/guest-tools/scatter \
	out/test/guest-tools/escape out/test/guest-tools/evil-kernel out/test/guest-tools/evil-machine \
	out/test/guest-tools/kvm-host-init

BENCHMARKS := out/bench/benchmarks out/bench/observer out/bench/vsock-peer out/bench/calls
# What `make bench` measures, everything if it is empty; `make bench BENCH=--help` lists it.
BENCH ?=
# Options of `make kernel-profile`.
PROFILE ?=

# Which kernel `make kernel` builds: one of kernel-config/variants/.
VARIANT ?= default

.PHONY: help setup setup-tests build image kernel run test test-kvm test-kvm-all test-work soak fuzz walls bench kernel-profile reproduce lint install clean FORCE

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PREFIX=$(PREFIX)"
	@echo "  KERNEL_SOURCE=$(or $(KERNEL_SOURCE),linux-*.tar.xz)   a tarball to use instead of Debian's package"
	@echo "  UM_KERNEL_SOURCE=$(or $(UM_KERNEL_SOURCE),linux-*.tar.xz)   the same for the kernel um"
	@echo "  VMM_CACHE=$(VMM_CACHE)   built kernels"
	@echo "  VMM_TEST_ACCEL=$(or $(VMM_TEST_ACCEL),um tcg)   the accelerators under test"
	@echo "  ROUNDS=$(ROUNDS) RUNS=$(RUNS)   how long make soak takes"
	@echo "  FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ=$(or $(FUZZ),NAME)   how long make fuzz looks at each target, and at which"

setup: ## Install what building and running takes, where it is missing (Debian, as root)
	@scripts/setup

setup-tests: ## The same for the tests
	@scripts/setup --tests

build: $(PROGRAMS) ## The programs: vmm, vminitd, imagebuilder

image: $(SHARE)/manifest.json ## What a VM boots: kernels, initfs, default image

kernel: out/kernels/$(VARIANT)/vmlinux ## Another kernel, for --kernel: VARIANT=retpoline makes out/kernels/retpoline/vmlinux

run: build image ## Everything up to a container that says hello
	@out/bin/vmm run --rm busybox sh -c 'echo "Hello from a container with a kernel of its own: $$(uname -sr), PID $$$$"'

test: setup-tests build image out/test/default-second out/test/um-second out/test/vmm ## Everything up to tests of all parts, alone and together
	@scripts/test

# What the emulated host needs beside what its tests do.
test-kvm test-kvm-all: setup-tests build image out/test/default-second out/test/vmm out/kernels/kvm-host/vmlinux

test-kvm: ## The core of the tests with machines, under KVM on an emulated host
	@scripts/test-kvm core

test-kvm-all: ## All of them, which takes an hour
	@scripts/test-kvm all

test-work: build image ## Programs that people run, in an image of Debian's packages, compared with the host; makes the image once
	@scripts/work-image out/bin/vmm out/test/work
	@VMM_TEST_ACCEL=um cargo test --locked -p end-to-end --test real_work

soak: setup-tests build image out/test/vmm ## What takes hours: ROUNDS of every kind of bad luck, RUNS in a row, FUZZ_SECONDS of fuzzing
	@scripts/soak "$(ROUNDS)" "$(RUNS)" "$(FUZZ_SECONDS)"

fuzz: setup ## Look for bytes that break what reads them, FUZZ_SECONDS for each target; what was learned is kept
	@scripts/fuzz "$(FUZZ_SECONDS)" $(FUZZ) $(FUZZ_INPUT)

walls: setup-tests build image ## Whether the tests of the walls around a kernel as a process notice that one is gone
	@scripts/walls

bench: setup-tests build image $(BENCHMARKS) ## Each target beside its figure; BENCH=run measures one thing
	@out/bench/benchmarks targets $(BENCH)

kernel-profile: build image $(BENCHMARKS) ## Where the kernel's boot spends its instructions
	@out/bench/benchmarks kernel-profile $(PROFILE)

reproduce: setup ## Everything, twice and elsewhere: are the bytes the same? (An hour, with the kernels)
	@scripts/reproduce

lint: ## Layout and mistakes of code and scripts
	@scripts/lint

install: ## Copy what was built to PREFIX, below DESTDIR if that is given
	@scripts/install "$(DESTDIR)$(PREFIX)"

clean: ## Remove everything that was built here; the cache stays
	rm -rf out target

# One run of cargo for all: what they have in common, the standard library first, is compiled once.
CARGO_BUILD := scripts/cargo-static build --locked --release --target-dir target/static \
	-p host-vmm -p vminitd -p imagebuilder -p guest-tools

$(PROGRAMS) &: FORCE | setup
	@$(CARGO_BUILD)
	@for program in $(PROGRAMS); do scripts/install-program $(STATIC)/$${program##*/} $$program; done

# The command with failpoints. Behind the programs: cargo leaves this one where it left that without.
out/test/vmm: FORCE | $(PROGRAMS)
	@$(CARGO_BUILD) --features host-vmm/failpoints
	@scripts/install-program $(STATIC)/vmm $@

$(BENCHMARKS) &: FORCE | setup
	@scripts/cargo-static build --locked --release --target-dir target/static -p benchmarks
	@for program in $(BENCHMARKS); do scripts/install-program $(STATIC)/$${program##*/} $$program; done

# The rules below run always, and take no time where there is nothing to do. What they make they compare by content, so
# that they also put right what somebody has changed since.

# $(call KERNEL,VARIANT)
KERNEL = $(IMAGEBUILDER) kernel --config-dir kernel-config --variant $(1) --cache "$(VMM_CACHE)" \
	$(if $(call SOURCE,$(1)),--source "$(call SOURCE,$(1))") --out $@
SOURCE = $(if $(filter um,$(1)),$(UM_KERNEL_SOURCE),$(KERNEL_SOURCE))

$(SHARE)/kernels/default/vmlinux: $(IMAGEBUILDER) FORCE
	@mkdir -p $(@D) $(ORIGINS)
	@$(call KERNEL,default) --origin $(ORIGINS)/kernel-default.json

# Its source is in a suite that need not be reached from here. Without it everything else is built.
$(SHARE)/kernels/um/vmlinux: $(IMAGEBUILDER) FORCE
	@mkdir -p $(ORIGINS)
	@$(call KERNEL,um) --optional --origin $(ORIGINS)/kernel-um.json

out/kernels/%/vmlinux: $(IMAGEBUILDER) FORCE
	@mkdir -p $(@D)
	@$(call KERNEL,$*)

# Kernels that say in their release that they are not the installed ones.
out/test/%-second: $(IMAGEBUILDER) FORCE
	@mkdir -p $(@D)
	@$(call KERNEL,$*) $(if $(filter um,$*),--optional) --local-version -second

$(SHARE)/initfs.cpio: out/build/vminitd $(IMAGEBUILDER) FORCE
	@mkdir -p $(@D) $(ORIGINS)
	@scripts/program-origin vminitd $< $(ORIGINS)/vminitd.json agent-protocol vminitd
	@$(IMAGEBUILDER) initfs --vminitd $< --out $@ \
		--origin $(ORIGINS)/initfs.json --knowing $(ORIGINS)/vminitd.json

$(SHARE)/images/names.json: $(IMAGEBUILDER) FORCE
	@mkdir -p $(@D) $(ORIGINS)
	@$(IMAGEBUILDER) recipe rootfs/busybox/recipe --out out/build/busybox --origin $(ORIGINS)/busybox-oci.json >/dev/null
	@loaded=$$($(IMAGEBUILDER) load --store $(SHARE) out/build/busybox \
		--origin $(ORIGINS)/busybox.json --knowing $(ORIGINS)/busybox-oci.json) && \
		scripts/keep-only $(SHARE)/images "$$loaded"

$(SHARE)/manifest.json: $(SHARE)/kernels/default/vmlinux $(SHARE)/kernels/um/vmlinux $(SHARE)/initfs.cpio $(SHARE)/images/names.json out/bin/vmm
	@scripts/program-origin vmm out/bin/vmm $(ORIGINS)/vmm.json agent-protocol host-vmm imagebuilder
	@kernels=($(ORIGINS)/kernel-*.json); \
		$(IMAGEBUILDER) manifest --prefix out --program $(ORIGINS)/vmm.json "$${kernels[@]/#/--kernel=}" \
		--initfs $(ORIGINS)/initfs.json --image $(ORIGINS)/busybox.json
