# What the scripts beside this file share. Sourced by them, from anywhere.
# shellcheck shell=bash disable=SC2034

readonly MUSL_TARGET=x86_64-unknown-linux-musl
# The oldest Rust that compiles this project: rust-version in Cargo.toml.
readonly RUST_AT_LEAST=1.95
# Debian 12 has a current Rust beside its old one: packages rustc-web and cargo-web, which live in /usr/bin.
readonly DEBIAN_RUSTC=/usr/bin/rustc
readonly DEBIAN_CARGO=/usr/bin/cargo
readonly DEBIAN_RUST_SOURCE=/usr/lib/rustlib/src/rust/library
readonly DEBIAN_LIBUNWIND=/usr/lib/llvm-14/lib/libunwind.a
readonly DEBIAN_MUSL=/usr/lib/x86_64-linux-musl

# Tools of the system live in sbin too, which is not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin

# What outlives a clone: built kernels, and what setup has found out.
cache_dir() {
    printf '%s\n' "${VMM_CACHE:-${XDG_CACHE_HOME:-${HOME:?has to be set, or VMM_CACHE}/.cache}/vmm}"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

# Whether $1, a rustc or cargo, runs and is recent enough.
is_recent_rust() {
    local version minor
    version=$("$1" --version 2>/dev/null) || return 1
    version=${version#* }
    minor=${version#*.}
    ((${version%%.*} > ${RUST_AT_LEAST%%.*} || ${minor%%.*} >= ${RUST_AT_LEAST#*.}))
}

# Whether the active rustc brings a standard library for static programs.
has_musl_target() {
    local sysroot
    sysroot=$(rustc --print sysroot 2>/dev/null) && [[ -d $sysroot/lib/rustlib/$MUSL_TARGET/lib ]]
}

# The rustc that makes static programs.
static_rustc() {
    if has_musl_target; then
        printf 'rustc\n'
    else
        printf '%s\n' "$DEBIAN_RUSTC"
    fi
}

# What the tests that passed have printed is in the log alone: a filter of a test runner's output.
without_output() {
    sed --unbuffered -E '/^successes:$/,/^(test result: |failures:$)/ { /^(test result: |failures:$)/ ! d }'
}

# What the log $1 of test runners says of all of them.
summary() {
    awk '
        /^Under / { under = " under " $2 }
        /^test .* \.\.\. ok$/ { well++ }
        /^test .* \.\.\. FAILED$/ { badly++; failures = failures "  failed" under ": " $2 "\n" }
        /^test result: / { programs++; passed += $4; failed += $6; ignored += $8; well = badly = 0 }
        # A program that has no result, and counts as failed itself.
        /^cut off: / {
            programs++; passed += well; failed += badly + 1; well = badly = 0
            failures = failures "  " $0 "\n"
        }
        /^skipped/ && !seen[$0 under]++ { skips = skips "  " $0 under "\n"; skipped++ }
        END {
            printf "\n%s%s", failures, skips
            printf "%d passed, %d failed, %d ignored, %d skipped, in %d test programs\n",
                passed, failed, ignored, skipped, programs
        }' "$1"
}
