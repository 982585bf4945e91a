# shellcheck shell=bash
# What the scripts share. Source it from the project's root: `. ci/lib.sh`.
#
# HOLM_CACHE           tools, downloaded packages and build products; safe to delete (default ~/.cache/holm)
# HOLM_DEBIAN_MIRROR   where packages of other Debian releases come from (default: the mirror apt uses)

HOLM_CACHE=${HOLM_CACHE:-$HOME/.cache/holm}
mkdir -p "$HOLM_CACHE/tools/bin"
HOLM_CACHE=$(cd "$HOLM_CACHE" && pwd)
export HOLM_CACHE
export PATH="$HOLM_CACHE/tools/bin:$PATH:/usr/sbin:/sbin"
# Dependencies are compiled once for every checkout; the products stay in the checkout's target/.
export CARGO_BUILD_BUILD_DIR=${CARGO_BUILD_BUILD_DIR:-$HOLM_CACHE/build}

STARTED=${EPOCHREALTIME/[.,]/}

# One line with the seconds since the script began.
step() {
    local us=$((${EPOCHREALTIME/[.,]/} - STARTED))
    printf '[%4d.%d s] %s\n' $((us / 1000000)) $((us / 100000 % 10)) "$*"
}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need PACKAGE COMMAND-OR-FILE: installs Debian's PACKAGE unless what it brings is there already.
need() {
    if command -v "$2" >/dev/null || [ -e "$2" ]; then return; fi
    step "installing Debian's $1, which has $2"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$1" >"$HOLM_CACHE/apt.log" 2>&1 ||
        { as_root apt-get -qq update && as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$1" >"$HOLM_CACHE/apt.log" 2>&1; } ||
        die "cannot install Debian's $1; see $HOLM_CACHE/apt.log"
}

need_rust() {
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing: install stable Rust from https://rustup.rs"
    need gcc cc
}

debian_mirror() {
    local uri=${HOLM_DEBIAN_MIRROR:-} ID VERSION_CODENAME
    # shellcheck source=/dev/null
    . /etc/os-release
    if [ -z "$uri" ]; then
        # shellcheck disable=SC2016 # apt-get expands it
        uri=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
            awk -v debian="$ID" -v release="$VERSION_CODENAME" \
                '$2 ~ /\/debian\/?$/ || (debian == "debian" && $1 == release) { print $2; exit }') || true
    fi
    [ -n "$uri" ] || die "apt names no Debian mirror: set HOLM_DEBIAN_MIRROR to the URL of one"
    printf '%s\n' "${uri%/}"
}

# apt_of SUITE ARGUMENT...: apt-get over one suite, with lists and cache of its own, so that the
# machine's lists, sources and installed packages stay as they are. Needs no root.
apt_of() {
    local suite=$1 dir=$HOLM_CACHE/apt/$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    shift
    need debian-archive-keyring "$keyring"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/state"
    : >"$dir/state/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$(debian_mirror)" "$suite" >"$dir/sources.list"
    apt-get -qq \
        -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$dir/state" -o Dir::State::status="$dir/state/status" \
        -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" \
        -o APT::Sandbox::User="$(id -un)" "$@"
}

# unpacked SUITE PACKAGE...: downloads packages of a suite and unpacks them into
# $HOLM_CACHE/debs/SUITE/, installing nothing. A package that is unpacked already is left alone.
unpacked() {
    local suite=$1 dir=$HOLM_CACHE/debs/$1 package deb missing=()
    shift
    mkdir -p "$dir/.have"
    for package; do
        [ -e "$dir/.have/$package" ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    step "unpacking ${missing[*]} of Debian $suite into the cache"
    rm -rf "$dir/.new"
    mkdir "$dir/.new"
    (cd "$dir/.new" && apt_of "$suite" update && apt_of "$suite" download "${missing[@]}") >"$HOLM_CACHE/apt.log" 2>&1 ||
        die "cannot download ${missing[*]} of Debian $suite; see $HOLM_CACHE/apt.log"
    for deb in "$dir/.new/"*.deb; do dpkg -x "$deb" "$dir"; done
    for package in "${missing[@]}"; do : >"$dir/.have/$package"; done
    rm -rf "$dir/.new"
}
