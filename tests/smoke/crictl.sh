#!/bin/sh
# The smoke test of a node: pulls an image, runs a pod of a runtime handler with it, and looks whether the image came
# to stand unpacked and labelled in the handler's snapshotter. Takes away again what it has made, however it ends.
#
# POSIX sh, and crictl; ctr for a look at the labels themselves. Of crictl it takes ids and exit statuses, and one word
# of `inspect`: its JSON is not the same in all versions.

set -u

usage() {
    cat <<'END'
usage: crictl.sh [OPTIONS] HANDLER IMAGE

Runs a pod of the runtime handler HANDLER with IMAGE, and checks that IMAGE is
ready in the handler's snapshotter. The last line is PASS, or FAIL and why.
Exit status: 0 passed, 1 failed, 2 wrong usage or a program is missing.

  --snapshotter NAME       check this one [default: the handler's]
  --pull                   pull, also if the image is there
  --no-pull                do not pull [default: pull if it is not there]
  --no-start               create the container, and do not start it
  --no-labels              do not look at the labels (labels = "none")
  --wait SECONDS           for the image to become ready [default: 10]
  --keep                   leave the pod and the image
  --runtime-endpoint URL   of containerd [default: crictl's]
  --timeout SECONDS        of a call of crictl [default: 120]
  --cgroup-parent NAME     of the pod [default: containerd's]
  --program FILE           nri-unpack [default: the one on PATH]
  --config FILE            nri-unpack's configuration [default: its own]
END
}

say() {
    printf '%-9s %s\n' "$1" "$2"
}

# Wrong usage, before anything was done.
refuse() {
    printf 'FAIL: %s\n' "$1"
    exit 2
}

fail() {
    verdict="FAIL: $1"
    status=1
    exit 1
}

# --- arguments

snapshotter='' pull=missing start=yes labels=yes wait=10 keep=no
endpoint='' timeout=120 cgroup='' program=nri-unpack config=''

is_number() {
    case $1 in
    '' | *[!0-9]*) return 1 ;;
    esac
}

# What stands in JSON below needs no escapes then.
is_plain() {
    case $1 in
    '' | -* | *[!A-Za-z0-9._:/@-]*) return 1 ;;
    esac
}

while [ $# -gt 0 ]; do
    case $1 in
    --snapshotter | --wait | --runtime-endpoint | --timeout | --cgroup-parent | --program | --config)
        [ $# -gt 1 ] || refuse "$1 needs a value: see --help"
        case $1 in
        --snapshotter) snapshotter=$2 ;;
        --wait) wait=$2 ;;
        --runtime-endpoint) endpoint=$2 ;;
        --timeout) timeout=$2 ;;
        --cgroup-parent) cgroup=$2 ;;
        --program) program=$2 ;;
        --config) config=$2 ;;
        esac
        shift
        ;;
    --pull) pull=always ;;
    --no-pull) pull=never ;;
    --no-start) start=no ;;
    --no-labels) labels=no ;;
    --keep) keep=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        break
        ;;
    -*) refuse "there is no option $1: see --help" ;;
    *) break ;;
    esac
    shift
done
[ $# -eq 2 ] || refuse "give a runtime handler and an image, after the options: see --help"
handler=$1 image=$2
is_plain "$handler" || refuse "\"$handler\" is not the name of a runtime handler"
is_plain "$image" || refuse "\"$image\" is not the name of an image"
[ -z "$cgroup" ] || is_plain "$cgroup" || refuse "\"$cgroup\" is not the name of a cgroup"
is_number "$wait" || refuse "--wait takes seconds, not \"$wait\""
is_number "$timeout" || refuse "--timeout takes seconds, not \"$timeout\""
case $endpoint in
'' | unix:///*) ;;
/*) endpoint=unix://$endpoint ;;
*) refuse "--runtime-endpoint takes unix:///PATH, not \"$endpoint\"" ;;
esac
socket=${endpoint#unix://}

command -v crictl >/dev/null ||
    refuse "crictl is not on PATH: install cri-tools, in the version of the node's Kubernetes"
command -v "$program" >/dev/null ||
    refuse "$program is not on PATH: install it, or name it with --program"

# --- the programs: what one has said is in $tmp/out and $tmp/err afterwards

call() {
    crictl ${endpoint:+--runtime-endpoint "$endpoint" --image-endpoint "$endpoint"} \
        --timeout "${timeout}s" "$@" </dev/null >"$tmp/out" 2>"$tmp/err"
}

unpack() {
    "$program" "$@" ${config:+--config "$config"} ${socket:+--containerd-socket "$socket"} \
        >"$tmp/out" 2>"$tmp/err"
}

# A snapshot as JSON.
snapshot() {
    ctr ${socket:+--address "$socket"} --namespace k8s.io snapshots --snapshotter "$snapshotter" info "$1" 2>&1
}

# Why the last call failed: the message in crictl's last line, without the time and the level before it.
why() {
    grep -v '^ *$' "$tmp/err" | tail -n 1 |
        sed -e 's/.*level=[a-z]* msg="\(.*\)"$/\1/' -e 's/^[A-Z]*\[[0-9]*\] *//' -e 's/\\\\*"/"/g'
}

# The first value of a key in JSON, where that is text.
value_of() {
    sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1
}

# The id of the image, and nothing where it is not on the node.
image_id() {
    call inspecti -q "$image" && value_of id <"$tmp/out"
}

# --- the end, in every case

# Pods are found by their label: one that was asked for, and not answered before a Ctrl-C, may come a moment later.
remove_pods() {
    for _ in 1 2 3; do
        call pods -q --label "nri-unpack-smoke=$run" || return 1
        cp "$tmp/out" "$tmp/pods"
        while read -r id; do
            call stopp "$id" && call rmp "$id" && say removed "pod $id"
        done <"$tmp/pods"
        [ "$asked" = runp ] || break
        sleep 1
    done
    call pods -q --label "nri-unpack-smoke=$run" && [ ! -s "$tmp/out" ]
}

# By its id goes every name of an image: one that was there before under another name stays.
remove_image() {
    [ "$asked" != pull ] || sleep 1
    id=$(image_id) || return 0
    if grep -qxF "$id" "$tmp/before"; then
        say kept "image $id: it was there before, under another name"
    else
        call rmi "$id" && say removed "image $id"
    fi
}

clean_up() {
    if [ "$keep" = yes ]; then
        [ -z "$pod" ] || say kept "pod $pod: crictl rmp -f $pod"
        [ "$pulled" = no ] || say kept "image $image: crictl rmi $image"
        return
    fi
    left=''
    [ "$began" = no ] || remove_pods || left="pods with the label nri-unpack-smoke=$run"
    [ "$pulled" = no ] || remove_image || left="${left:+$left and }the image $image"
    [ -n "$left" ] || return 0
    say left "$left: $(why)"
    [ "$status" -ne 0 ] || verdict="FAIL: cannot remove $left"
    status=1
}

finish() {
    trap '' HUP INT TERM
    trap - EXIT
    clean_up
    rm -rf "$tmp"
    printf '%s\n' "$verdict"
    exit "$status"
}

verdict='FAIL: ended early' status=1
# What crictl was asked for and has not answered yet; whether pods were asked for; whether the image was.
asked='' began=no pulled=no pod='' container='' top=''
tmp=$(mktemp -d) || refuse "cannot make a temporary directory"
run=$(date +%s)-$$
trap finish EXIT
trap 'fail interrupted' HUP INT TERM

# --- before anything is changed

call info -q || fail "crictl does not reach containerd: $(why) (--runtime-endpoint)"
unpack handlers --output json || fail "$(why)"
grep -qF "\"handler\": \"$handler\"" "$tmp/out" ||
    fail "containerd has no runtime handler $handler; it has $(
        sed -n 's/.*"handler": *"\([^"]*\)".*/\1/p' "$tmp/out" | paste -s -d ' ' -
    )"
default=$(value_of default_snapshotter <"$tmp/out")
call images -q || fail "crictl does not list images: $(why)"
cp "$tmp/out" "$tmp/before"

# --- the image

if id=$(image_id); then
    say image "$image is there: $id"
    [ "$pull" = always ] || pull=never
else
    [ "$pull" != never ] || fail "the image $image is not there, and --no-pull says not to pull it"
    pulled=yes
fi
if [ "$pull" != never ]; then
    asked=pull
    call pull "$image" || fail "cannot pull $image: $(why)"
    asked=''
    say pulled "$image: $(sed -n 's/^Image is up to date for //p' "$tmp/out")"
fi

# --- the pod and its container

write_pod() {
    cat >"$tmp/pod.json" <<END
{
  "metadata": {"name": "nri-unpack-smoke", "namespace": "default", "uid": "$run", "attempt": $1},
  "labels": {"nri-unpack-smoke": "$run"},
  "linux": {
    "cgroup_parent": "$cgroup",
    "security_context": {"namespace_options": {"network": 2}}
  }
}
END
}

cat >"$tmp/container.json" <<END
{"metadata": {"name": "smoke", "attempt": 0}, "image": {"image": "$image"}, "linux": {}}
END

# Where the plugin rejects a creation because its image is not ready yet, the kubelet tries again. So does this.
create() {
    tries=$wait
    until call create "$pod" "$tmp/container.json" "$tmp/pod.json"; do
        reason="cannot create a container of $image: $(why)"
        case $reason in
        *'the kubelet will try again'*) ;;
        *) return 1 ;;
        esac
        [ "$tries" -gt 0 ] || return 1
        tries=$((tries - 1))
        say waiting "${reason##*nri-unpack: }"
        sleep 1
    done
    container=$(tail -n 1 "$tmp/out")
}

run_pod() {
    write_pod "$1"
    began=yes asked=runp
    call runp --runtime "$handler" "$tmp/pod.json" || {
        reason="cannot run a pod of handler $handler: $(why)"
        return 1
    }
    asked='' pod=$(tail -n 1 "$tmp/out")
    say pod "$pod runs, of handler $handler"
    create || return 1
    # What the container stands on, while it is there.
    if [ "$labels" = yes ] && command -v ctr >/dev/null; then
        top=$(snapshot "$container" | value_of Parent)
    fi
    [ "$start" = yes ] || {
        say container "$container is created"
        return 0
    }
    call start "$container" || {
        reason="cannot start a container of $image: $(why)"
        return 1
    }
    call inspect -q "$container"
    say container "$container was started: $(value_of state <"$tmp/out")"
}

# Status 1 only says that the image is not ready yet.
if [ -n "$snapshotter" ]; then
    unpack check "$image" --output json --snapshotter "$snapshotter"
else
    unpack check "$image" --output json --handler "$handler"
fi
[ $? -le 1 ] || fail "$(why)"
snapshotter=$(value_of snapshotter <"$tmp/out")
[ -n "$snapshotter" ] || fail "$(why)"

is_gone() {
    [ -n "$1" ] && call pods -q --id "$1" --state ready && [ ! -s "$tmp/out" ]
}

# A kubelet on this node takes away pods that it does not know.
attempt=0
until run_pod "$attempt"; do
    is_gone "$pod" || fail "$reason"
    [ "$attempt" -lt 3 ] || fail "$reason"
    attempt=$((attempt + 1)) pod=''
    say again "the pod was removed from outside; a kubelet does so with pods that are not its own"
done

# --- what came of it

# Some of it may be done in the background after the creation.
tries=$wait
until unpack check "$image" --output json --snapshotter "$snapshotter"; do
    state=$(value_of state <"$tmp/out")
    [ -n "$state" ] || fail "$(why)"
    reason="$image is $state in $snapshotter: $(value_of reason <"$tmp/out")"
    if [ "$tries" -eq 0 ]; then
        [ "$snapshotter" != "$default" ] ||
            fail "$reason; $snapshotter is the default snapshotter, which nri-unpack leaves alone"
        fail "$reason; does the plugin run? nri-unpack doctor says what is wrong"
    fi
    tries=$((tries - 1))
    sleep 1
done
say state "$image is ready in $snapshotter"

if [ "$labels" = no ]; then
    verdict=PASS status=0
    exit 0
fi
if [ -z "$top" ]; then
    say labels "not looked at themselves: ctr is not on PATH, or finds no snapshot of the container"
    verdict=PASS status=0
    exit 0
fi
layers=0
while [ -n "$top" ]; do
    found=$(snapshot "$top")
    for label in image-ref manifest-digest layer-digest image-layers; do
        case $found in
        *"\"containerd.io/snapshot/cri.$label\": "*) ;;
        *) fail "the snapshot $top in $snapshotter lacks the label containerd.io/snapshot/cri.$label" ;;
        esac
    done
    layers=$((layers + 1))
    top=$(printf '%s\n' "$found" | value_of Parent)
done
say labels "are on all snapshots that the container stands on: $layers"
verdict=PASS status=0
