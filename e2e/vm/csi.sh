# Runs in the guest: `orlop dev --csi`, whose plugin stages what the guest's kernel attaches by NVMe/TCP; nothing is over
# FUSE. /vm/orlop-e2e makes an orchestrator's calls. Claims as ext4 and as block device, which are grown in use, whose
# plugin, engine and whole cluster are killed, and of which nothing is left.
# Ends with `csi: ok`; every line before is something that held.
. /vm/cluster.sh
cp /vm/orlop-e2e /usr/local/bin/orlop-e2e
calls() { orlop-e2e csi-calls --sockets /tmp/csi --folder /tmp/pods "$@"; } # [--mount] claim, calls
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
    [ -z "$(ls -d /tmp/pods/*/{pod-*,read-only} 2>/dev/null || true)" ] # The staging folder is the orchestrator's.
}
same_files() { echo 3 >/proc/sys/vm/drop_caches; (cd $POD && sha1sum --quiet -c /tmp/sums); }
same_bytes() { echo 3 >/proc/sys/vm/drop_caches; cmp -n 16777216 /tmp/wanted $1; }
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

modprobe loop # A block device that refuses writes is one over the device.
dmesg -C
POD=/tmp/pods/raw/pod-node-1
calls raw create=32 attach stage publish
on_nvme raw
[ -b $POD ]
[ "$(stat -c %t:%T $POD)" = "$(stat -c %t:%T $D)" ]
head -c 16777216 /dev/urandom >/tmp/wanted
dd if=/tmp/wanted of=$POD bs=1M conv=fsync,notrunc status=none
calls raw expand-in-controller=64 expand-on-node=64
[ "$(calls raw size)" = $((64 << 20)) ]
[ "$(blockdev --getsize64 $POD)" = $((64 << 20)) ]
crash_plugin
crash node-1
calls raw attach stage publish
still raw
same_bytes $POD
calls raw unpublish publish-read-only
READER=/tmp/pods/raw/read-only
[ -b $READER ]
[ "$(blockdev --getsize64 $READER)" = $((64 << 20)) ]
dd if=/dev/zero of=$READER bs=4096 count=1 conv=fsync,notrunc status=none 2>/dev/null && false
same_bytes $READER
quiet
calls raw unpublish-read-only unstage detach delete
nothing
[ "$(orlop volume list -o json)" = "[]" ]
kill -INT $DEV; wait $DEV
step "a block device: grown, plugin and engine killed, then without writes: the same bytes; gone without a trace"
echo "csi: ok"
