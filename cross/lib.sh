# shellcheck shell=bash
# How a static binary for a foreign machine is built: Zig is the C compiler and the linker, rustup
# brings the target's standard library. Where rustup cannot (a machine behind package mirrors), the
# standard library is built from Debian's rust-src of the compiler's own version.

CROSS_TARGETS="x86_64-unknown-linux-musl aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf"
ZIG_VERSION=0.17.0
ZIGBUILD_VERSION=0.24.1

# Puts Zig and cargo-zigbuild into the cache.
cross_tools() {
    need_rust
    need binutils readelf
    local zig=$HOLM_CACHE/zig-$ZIG_VERSION
    if [ ! -x "$zig/ziglang/zig" ]; then
        need python3-pip pip3
        step "installing Zig $ZIG_VERSION into the cache"
        rm -rf "$zig"
        pip3 install --quiet --no-cache-dir --root-user-action ignore --target "$zig" "ziglang==$ZIG_VERSION" ||
            die "pip could not install ziglang $ZIG_VERSION"
    fi
    export CARGO_ZIGBUILD_ZIG_PATH=$zig/ziglang/zig
    if ! cargo-zigbuild --version 2>/dev/null | grep -qF " $ZIGBUILD_VERSION"; then
        step "installing cargo-zigbuild $ZIGBUILD_VERSION into the cache"
        CARGO_TARGET_DIR=$HOLM_CACHE/tools/build cargo install --quiet --locked --root "$HOLM_CACHE/tools" \
            "cargo-zigbuild@$ZIGBUILD_VERSION"
        rm -rf "$HOLM_CACHE/tools/build"
    fi
}

cross_check_target() {
    case " $CROSS_TARGETS " in
    *" $1 "*) ;;
    *) die "unknown target $1: choose of $CROSS_TARGETS" ;;
    esac
}

# Makes the compiler able to build for target $1 and says how in CROSS_STD: `ready` or `source`.
cross_std() {
    local target=$1 sysroot
    sysroot=$(rustc --print sysroot)
    CROSS_STD=ready
    [ -z "${HOLM_STD_FROM_SOURCE:-}" ] || CROSS_STD=source
    if [ "$CROSS_STD" = ready ] && [ ! -d "$sysroot/lib/rustlib/$target/lib" ]; then
        step "adding the standard library of $target with rustup"
        if ! timeout 600 rustup target add "$target" >"$HOLM_CACHE/rustup.log" 2>&1; then
            CROSS_STD=source
            step "rustup could not: building the standard library from source"
        fi
    fi
    if [ "$CROSS_STD" = source ]; then cross_std_source "$sysroot"; fi
}

cross_std_source() {
    local link=$1/lib/rustlib/src/rust version suite
    [ -e "$link/library/std/Cargo.toml" ] && return
    timeout 600 rustup component add rust-src >"$HOLM_CACHE/rustup.log" 2>&1 && return
    version=$(rustc --version | cut -d' ' -f2)
    for suite in trixie-backports trixie forky sid; do
        apt_of "$suite" update >"$HOLM_CACHE/apt.log" 2>&1 || continue
        apt_of "$suite" --print-uris download rust-src 2>/dev/null | grep -qF "rust-src_$version" || continue
        unpacked "$suite" rust-src
        mkdir -p "${link%/*}"
        ln -sfn "$(printf '%s\n' "$HOLM_CACHE/debs/$suite/usr/src/rustc-$version"*)" "$link"
        [ -e "$link/library/std/Cargo.toml" ] || die "Debian's rust-src has no library/std at $link"
        return
    done
    die "no source of Rust $version's standard library: neither rustup nor Debian has it"
}

# cross_cargo TARGET SUBCOMMAND ARGUMENT...: cargo-zigbuild for the target.
cross_cargo() {
    local target=$1 subcommand=$2
    shift 2
    if [ "$CROSS_STD" = source ]; then
        # Only here: RUSTC_BOOTSTRAP lets stable build std; musl's start files come from Zig.
        RUSTC_BOOTSTRAP=1 RUSTFLAGS="-C link-self-contained=no" \
            cargo-zigbuild "$subcommand" -Z build-std=std,panic_unwind --target "$target" --locked "$@"
    else
        cargo-zigbuild "$subcommand" --target "$target" --locked "$@"
    fi
}

# Runs with a target's binary as arguments; nothing where the machine runs it by itself.
cross_runner() {
    case $1 in
    "$(uname -m)"-*) ;;
    x86_64-*) echo qemu-x86_64-static ;;
    aarch64-*) echo qemu-aarch64-static ;;
    armv7-*) echo qemu-arm-static ;;
    esac
}
