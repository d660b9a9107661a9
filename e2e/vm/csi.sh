# Runs in the guest: `orlop dev --csi`, whose plugin stages what the guest's kernel attaches by NVMe/TCP; nothing is over
# FUSE. /vm/orlop-e2e makes an orchestrator's calls. A claim as ext4, which is grown in use, whose plugin, engine and whole
# cluster are killed, and of which nothing is left.
# Ends with `csi: ok`; every line before is something that held.
. /vm/cluster.sh
cp /vm/orlop-e2e /usr/local/bin/orlop-e2e
calls() { orlop-e2e csi --sockets /tmp/csi --folder /tmp/pods "$@"; } # [--mount] claim, calls
plugin() { jq '."csi-node-1".pid' /tmp/data/processes.json; }
another() { [ "$(plugin)" != $1 ]; }
crash_plugin() { local before; before=$(plugin); kill -9 $before; within 60 another $before; }
on_nvme() { # claim: D is its device
    D=$(orlop volume get $1 -o json | jq -r .status.device)
    case $D in /dev/nvme*n*) [ -b $D ] ;; *) echo "$D is no NVMe device"; false ;; esac
    grep -q '^nqn.2026-11.io.orlop:device:' /sys/class/block/$(basename $D)/device/subsysnqn
}
no_fuse() { [ -z "$(losetup --list --noheadings)" ] && ! grep -E ' - fuse[. ]' /proc/self/mountinfo; }
nothing() { # no controller, mount, loop device or file of pods
    within 20 none
    no_fuse
    [ -z "$(grep /tmp/pods /proc/self/mountinfo || true)" ]
    [ -z "$(ls -d /tmp/pods/*/pod-* 2>/dev/null || true)" ] # The staging folder is the orchestrator's.
}
deleted() { [ "$(orlop volume list -o json | jq length)" = 0 ]; }
same_files() { echo 3 >/proc/sys/vm/drop_caches; (cd $POD && sha1sum --quiet -c /tmp/sums); }
still() { local before=$D; on_nvme $1; [ $D = $before ]; } # claim: it is the same device as before

modprobe nvme-tcp
start 1 --csi /tmp/csi
POD=/tmp/pods/files/pod-node-1
calls --mount files create=96 attach stage publish
on_nvme files
[ "$(findmnt -n -o SOURCE,FSTYPE $POD | tr -s ' ')" = "$D ext4" ]
cp /usr/bin/[a-d]* $POD/; (cd $POD && sha1sum [a-d]* >/tmp/sums); sync
no_fuse
step "a claim is an ext4 on $D with $(wc -l </tmp/sums) files, and nothing is over FUSE"

dmesg -C
BEFORE=$(calls --mount files size)
tail -f /dev/null >>$POD/open & OPEN=$!
calls --mount files expand-in-controller=160 expand-on-node=160
[ "$(blockdev --getsize64 $D)" = $((160 << 20)) ]
AFTER=$(calls --mount files size)
[ $((AFTER - BEFORE)) -gt $((48 << 20)) ]
head -c 16777216 /dev/urandom >$POD/atop; (cd $POD && sha1sum atop >>/tmp/sums); sync
kill -0 $OPEN; kill $OPEN; wait $OPEN || true
rm $POD/open
same_files
step "grown under its pod, $((BEFORE >> 20)) to $((AFTER >> 20)) MiB of files; they are the same"

crash_plugin
crash node-1
calls --mount files create=96 attach stage publish expand-on-node=160
still files
same_files
step "plugin and engine killed: every call is repeated, the same device and files"
kill -9 $DEV; wait $DEV 2>/dev/null || true
quiet
# The next run of `orlop dev` takes away what is left of this one: the pod has lost its device, as in a restart of the node.
start 1 --csi /tmp/csi
dd if=/dev/zero of=$POD/late bs=4k count=1 conv=fsync status=none 2>/dev/null && false
calls --mount files unpublish attach stage publish
on_nvme files
same_files
[ ! -e $POD/late ]
echo more >$POD/more; sync
step "all of the cluster killed and started again under the pod, which starts again: all files"

calls --mount files unpublish unstage detach
nothing
calls --mount files attach stage publish
on_nvme files
same_files
[ "$(cat $POD/more)" = more ]
calls --mount files unpublish unstage unstage detach delete delete
nothing
step "gone without a trace, there again, deleted"

within 20 deleted
kill -INT $DEV; wait $DEV
echo "csi: ok"
