# Builds the programs and what a VM boots into out/, in the layout that `make install` copies:
#
#   out/bin/vmm                              the command; finds ../share/vmm
#   out/share/vmm/kernels/default/vmlinux    the kernel of every container that asks for no other
#   out/share/vmm/initfs.cpio                vminitd, PID 1 of every VM
#   out/share/vmm/images/                    images that come with it: busybox
#
# out/build/ holds what is not installed, out/test/ what only the tests use.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=

# Kernels are built once and kept here, by the hash of what they are made of. Nothing in it is irreplaceable.
VMM_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmm
# A tarball of the kernel's source, instead of the distribution's package.
KERNEL_SOURCE ?=
export VMM_CACHE KERNEL_SOURCE
# cargo and the kernel's build decide for themselves how much to run at once, and do it in turn.
unexport MAKEFLAGS MFLAGS

SHARE := out/share/vmm
IMAGEBUILDER := out/build/imagebuilder
STATIC := target/static/x86_64-unknown-linux-musl/release
PROGRAMS := out/bin/vmm out/build/vminitd $(IMAGEBUILDER) out/test/guest-tools/vsock-probe \
	out/test/guest-tools/hostile-init

.PHONY: help setup setup-tests build image run test lint install clean FORCE

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PREFIX=$(PREFIX)"
	@echo "  KERNEL_SOURCE=$(or $(KERNEL_SOURCE),linux-*.tar.xz)   a tarball to use instead of Debian's package"
	@echo "  VMM_CACHE=$(VMM_CACHE)   built kernels"

setup: ## Install what building and running takes, where it is missing (Debian, as root)
	@scripts/setup

setup-tests: ## The same for the tests
	@scripts/setup --tests

build: $(PROGRAMS) ## The programs: vmm, vminitd, imagebuilder

image: $(SHARE)/kernels/default/vmlinux $(SHARE)/initfs.cpio $(SHARE)/images/names.json ## What a VM boots: kernel, initfs, default image

run: build image ## Everything up to a container that says hello
	@out/bin/vmm run --rm busybox sh -c 'echo "Hello from a container with a kernel of its own: $$(uname -sr), PID $$$$"'

test: setup-tests build image out/test/vmlinux-second ## Everything up to tests of all parts, alone and together
	@scripts/test

lint: ## Layout and mistakes of code and scripts
	@scripts/lint

install: ## Copy what was built to PREFIX, below DESTDIR if that is given
	@scripts/install "$(DESTDIR)$(PREFIX)"

clean: ## Remove everything that was built here; the cache stays
	rm -rf out target

# The rules below look at content: a program that comes out as it was is left alone, and so is what is made from it.

# One run of cargo for all: what they have in common, the standard library first, is compiled once.
$(PROGRAMS) &: FORCE | setup
	@scripts/cargo-static build --locked --release --target-dir target/static \
		-p host-vmm -p vminitd -p imagebuilder -p guest-tools
	@for program in $(PROGRAMS); do scripts/install-program $(STATIC)/$${program##*/} $$program; done

# What the kernel is made of beside the files of the tree: the tarball, by its name, size and time.
out/build/kernel.inputs: FORCE | setup
	@scripts/note-inputs $@ "$(KERNEL_SOURCE)" /usr/src/linux-source-*.tar.xz

KERNEL_CONFIG := $(shell find kernel-config 2>/dev/null)
KERNEL = $(IMAGEBUILDER) kernel --config-dir kernel-config --variant default --cache "$(VMM_CACHE)" \
	$(if $(KERNEL_SOURCE),--source "$(KERNEL_SOURCE)") --out $@

$(SHARE)/kernels/default/vmlinux: $(KERNEL_CONFIG) $(IMAGEBUILDER) out/build/kernel.inputs
	@mkdir -p $(@D)
	@$(KERNEL)
	@touch $@

# A kernel that says in its release that it is not the default one.
out/test/vmlinux-second: $(KERNEL_CONFIG) $(IMAGEBUILDER) out/build/kernel.inputs
	@mkdir -p $(@D)
	@$(KERNEL) --local-version -second
	@touch $@

$(SHARE)/initfs.cpio: out/build/vminitd $(IMAGEBUILDER)
	@mkdir -p $(@D)
	@echo "Making the initfs"
	@$(IMAGEBUILDER) initfs --vminitd $< --out $@
	@touch $@

# The recipe takes this program from the system.
out/build/busybox.inputs: FORCE | setup
	@scripts/note-inputs $@ /bin/busybox

$(SHARE)/images/names.json: $(shell find rootfs/busybox) $(IMAGEBUILDER) out/build/busybox.inputs
	@mkdir -p $(@D)
	@echo "Making the image busybox"
	@$(IMAGEBUILDER) recipe rootfs/busybox/recipe --out out/build/busybox >/dev/null
	@rm -rf $(@D)
	@$(IMAGEBUILDER) load --store $(SHARE) out/build/busybox
	@touch $@
