# shellcheck shell=bash
# A board to try things on: a network namespace of its own with a containerd of its own, joined to
# this machine by a veth pair. Nothing outside the namespace, /run/holm-NAME and $HOLM_CACHE/boards/NAME
# is made or changed. Source it after ci/lib.sh and ci/env.sh; needs root.
#
# board_up NAME sets
#   BOARD_HOST_IP   this machine's address on the veth, where a cloud listens
#   BOARD_IP        the board's address there, where its host ports answer
#   BOARD_SOCKET    containerd's socket
#   BOARD_DIR       data of the board, on disk
#   BOARD_DIR/cloud and BOARD_DIR/edge are the data directories of roles that belong to it
# board_run COMMAND… runs in the board's network namespace.
# board_down NAME ends and removes everything of it, also of a board that an earlier script left.

board_names() {
    BOARD=$1
    BOARD_RUN=/run/holm-$1
    BOARD_DIR=$HOLM_CACHE/boards/$1
    BOARD_SOCKET=$BOARD_RUN/containerd.sock
}

# The mount namespace stays this machine's (`ip netns exec` would make another), so that containerd
# sees the volumes that an agent in the same board mounts.
board_run() {
    nsenter --net="/run/netns/holm-$BOARD" -- "$@"
}

# The first free pair of networks of 198.18.0.0/15, which RFC 2544 keeps for bench tests: nobody routes it.
board_network() {
    local n
    for n in $(seq 1 200); do
        ip -4 -o route show table all | grep -qE "^(broadcast |local )?198\.1[89]\.$n\." && continue
        ip -o link show "holm$n" >/dev/null 2>&1 && continue
        BOARD_LINK=holm$n BOARD_HOST_IP=198.18.$n.1 BOARD_IP=198.18.$n.2 BOARD_PODS=198.19.$n.0/24
        return
    done
    die "no free network in 198.18.0.0/15"
}

board_up() {
    board_down "$1"
    board_network
    mkdir -p "$BOARD_RUN/cni" "$BOARD_DIR/cni"
    # Written first: whatever happens next, board_down finds what to remove.
    printf '%s\n' "$BOARD_LINK" >"$BOARD_RUN/link"

    ip netns add "holm-$BOARD"
    ip link add "$BOARD_LINK" type veth peer name uplink netns "holm-$BOARD"
    ip address add "$BOARD_HOST_IP/30" dev "$BOARD_LINK"
    ip link set "$BOARD_LINK" up
    board_run ip link set lo up
    board_run ip address add "$BOARD_IP/30" dev uplink
    board_run ip link set uplink up
    board_run ip route add default via "$BOARD_HOST_IP"
    board_run sysctl -q -w net.ipv4.ip_forward=1

    cat >"$BOARD_RUN/cni/10-holm.conflist" <<END
{
  "cniVersion": "1.0.0",
  "name": "holm",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
      "ipam": { "type": "host-local", "dataDir": "$BOARD_DIR/cni", "ranges": [[{ "subnet": "$BOARD_PODS" }]] }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
END
    cat >"$BOARD_RUN/containerd.toml" <<END
version = 2
root = "$BOARD_DIR/containerd"
state = "$BOARD_RUN/state"
[grpc]
  address = "$BOARD_SOCKET"
[plugins."io.containerd.internal.v1.opt"]
  path = "$BOARD_DIR/opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$HOLM_TEST_CNI"
    conf_dir = "$BOARD_RUN/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$HOLM_TEST_BIN/runc"
      Root = "$BOARD_RUN/runc"
      SystemdCgroup = false
END
    board_containerd
    "$HOLM_TEST_BIN/ctr" -a "$BOARD_SOCKET" -n k8s.io images import "$HOLM_TEST_IMAGE" >"$BOARD_DIR/import.log" 2>&1 ||
        die "cannot import $HOLM_TEST_IMAGE; see $BOARD_DIR/import.log"
}

# Descriptor 9 is the caller's lock, if it has one: what outlives the caller must not hold it.
# Starts the board's containerd and waits until it answers. A session of its own keeps Ctrl-C from it.
board_containerd() {
    # shellcheck disable=SC2016 # the inner shell expands them
    PATH="$HOLM_TEST_BIN:$PATH" board_run setsid --fork sh -c 'echo $$ >"$1"; exec containerd --config "$2"' \
        sh "$BOARD_RUN/containerd.pid" "$BOARD_RUN/containerd.toml" \
        >>"$BOARD_DIR/containerd.log" 2>&1 </dev/null 9>&-
    local try
    for try in $(seq 100); do
        "$HOLM_TEST_BIN/ctr" -a "$BOARD_SOCKET" --connect-timeout 1s version >/dev/null 2>&1 && return
        sleep 0.1
    done
    die "containerd did not answer within ${try}00 ms; see $BOARD_DIR/containerd.log"
}

# Prints process $1 and all below it, deepest last.
board_tree() {
    local child
    echo "$1"
    for child in $(pgrep -P "$1"); do board_tree "$child"; done
}

# The processes of this board: by what their command line names, never by a program's name alone.
board_processes() {
    local file pid
    for file in /proc/[0-9]*/cmdline; do
        pid=${file#/proc/} pid=${pid%/cmdline}
        # A process may end while we look.
        if { tr '\0' '\n' <"$file"; } 2>/dev/null | grep -qxF \
            -e "$BOARD_RUN/containerd.toml" -e "$BOARD_SOCKET" -e "$BOARD_DIR/cloud" -e "$BOARD_DIR/edge"; then
            board_tree "$pid"
        fi
    done | sort -u
}

board_down() {
    board_names "$1"
    local pid id try mount file link containers=()
    # containerd first, so that it restarts nothing; then the shims with their containers.
    for try in 1 2 3; do
        for pid in $(board_processes); do
            [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true
        done
        [ -n "$(board_processes)" ] || break
        sleep 0.1
    done
    : "$try"

    # Shims put their sockets under /run/containerd/s whatever the configuration says.
    for file in "$BOARD_RUN"/state/io.containerd.runtime.v2.task/k8s.io/*/address; do
        [ -e "$file" ] || continue
        link=$(cat "$file")
        case $link in unix:///run/containerd/s/*) rm -f "${link#unix://}" ;; esac
        file=${file%/address}
        containers+=("${file##*/}")
    done
    rmdir /run/containerd/s /run/containerd 2>/dev/null || true
    for id in "${containers[@]}"; do
        # The cgroups of its containers, and those above them that are empty then.
        find /sys/fs/cgroup -depth -type d -path "*/*$id*" 2>/dev/null | while read -r file; do
            while rmdir "$file" 2>/dev/null; do file=${file%/*}; done
        done
    done

    # A mount may lie on top of another.
    for try in 1 2 3; do
        while read -r mount; do
            umount --lazy "$mount" 2>/dev/null || true
        done < <(cut -d' ' -f5 /proc/self/mountinfo | grep -E "^($BOARD_RUN|$BOARD_DIR)/" | sort -r)
    done
    grep -qE " ($BOARD_RUN|$BOARD_DIR)/" /proc/self/mountinfo && die "mounts are left under $BOARD_RUN or $BOARD_DIR"

    if [ -e "$BOARD_RUN/link" ]; then
        ip link delete "$(cat "$BOARD_RUN/link")" 2>/dev/null || true
    fi
    if [ -e "/run/netns/holm-$BOARD" ]; then ip netns delete "holm-$BOARD"; fi
    rm -rf --one-file-system "$BOARD_RUN" "$BOARD_DIR"
}
