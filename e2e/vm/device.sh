# Runs in the guest: `orlop dev`, whose volumes the guest's kernel attaches by NVMe/TCP from the node's own target. /vm/orlop
# is the program. What a node with nvme-tcp would do: a file system, an engine that is killed, growth, little memory, use
# that is refused to end, a move away, a secret, and an engine that does not come back. And where it cannot be, FUSE.
# Ends with `device: ok`; every line before is something that held.
. /vm/cluster.sh
attach() { # name, more options: D is its device
    D=$(orlop volume attach "$@")
    case $D in /dev/nvme*) [ -b $D ] ;; *) echo "$D is no NVMe device"; false ;; esac
}
plain() { # name, more options: the same over FUSE; P is its device
    P=$(orlop volume attach "$@")
    case $P in /dev/loop*) [ -b $P ] ;; *) echo "$P is no loop device"; false ;; esac
}
writes() { # until /tmp/stop is there: every line of the ledger is a file that was on disk then
    local n=0
    until [ -e /tmp/stop ]; do
        n=$((n + 1)); head -c 65536 /dev/urandom >/mnt/v/w$((n % 50)) && sync /mnt/v/w$((n % 50)) || return 1
        echo "$n" >>/tmp/ledger
    done
}

mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || true
# Both: without the other the kernel does not hold a writer of dirty pages up, and kills it.
echo "+memory +io" >/sys/fs/cgroup/cgroup.subtree_control
modprobe loop; modprobe fuse
start 2
orlop preflight -o json | jq -e '.[] | select(.feature == "NVMe/TCP devices") | .ok == false and (.remedy | contains("modprobe nvme-tcp"))' >/dev/null
grep -q 'devices are made over FUSE.*modprobe nvme-tcp' /tmp/data/log/node-1.log
orlop volume create plain --size 16MiB --copies 1 >/dev/null
plain plain --node node-1
head -c 65536 /dev/urandom | tee /tmp/plain | dd of=$P conv=fsync status=none
modprobe nvme-tcp
orlop preflight -o json | jq -e '.[] | select(.feature == "NVMe/TCP devices") | .ok' >/dev/null
step "preflight says what is missing, and a device is made over FUSE; after modprobe nvme-tcp nothing is missing"

orlop volume create data --size 96MiB --copies 2 >/dev/null
attach data --node node-1
mkfs.ext4 -q $D; mkdir -p /mnt/v; mount $D /mnt/v
cp /usr/bin/[a-d]* /mnt/v/; (cd /mnt/v && sha1sum [a-d]* >/tmp/sums); sync
NUMBER=$(stat -c %t:%T $D)
step "attached as $D: ext4, $(wc -l </tmp/sums) files"

dmesg -C
writes & WRITER=$!
within 20 test -s /tmp/ledger
for round in 1 2; do
    crash node-1
    SEEN=$(wc -l </tmp/ledger); within 40 bash -c "[ \$(wc -l </tmp/ledger) -gt $((SEEN + 3)) ]"
done
touch /tmp/stop; wait $WRITER
quiet
[ "$(orlop volume get data -o json | jq -r .status.device)" = $D ]
[ "$(stat -c %t:%T $D)" = $NUMBER ]
echo 3 >/proc/sys/vm/drop_caches
(cd /mnt/v && sha1sum --quiet -c /tmp/sums)
[ "$(orlop volume get plain -o json | jq -r .status.device)" = $P ]
dd if=$P bs=64k count=1 iflag=direct status=none | cmp - /tmp/plain
orlop volume detach plain >/dev/null; orlop volume delete plain >/dev/null
step "kill -9 of the engine under writes, twice: no error, the same devices, all files right"

orlop volume resize data --size 160MiB >/dev/null
within 20 test "$(blockdev --getsize64 $D)" = $((160 << 20))
resize2fs $D >/dev/null 2>&1
# With the first of them alone the kernel may kill a writer for which its pages are not written in time.
mkdir /sys/fs/cgroup/small; echo 24M >/sys/fs/cgroup/small/memory.max; echo 16M >/sys/fs/cgroup/small/memory.high
timeout 100 bash -c 'echo $$ >/sys/fs/cgroup/small/cgroup.procs; exec dd if=/dev/zero of=/mnt/v/large bs=1M count=48 conv=fsync status=none'
[ $(stat -c %s /mnt/v/large) = $((48 << 20)) ]
rm /mnt/v/large
step "grown to 160 MiB under the mount; 48 MiB written with 24 MiB of memory"

timeout 5 orlop volume detach data >/tmp/out 2>&1 && false
within 10 bash -c 'orlop volume get data -o json | jq -e ".status.message | contains(\"$0 is mounted at /mnt/v\")"' $D
(cd /mnt/v && sha1sum --quiet -c /tmp/sums)
umount /mnt/v
within 20 none
orlop volume detach data >/dev/null
step "not detached while it is mounted; then nothing is left of it"

# Its volume moves away while its engine stands still; then that goes on, or is killed and comes back.
gone() { # from, to, signal: what is mounted at /mnt/v fails, and what comes after has all files
    local from=$1 to=$2
    OLD=$D; kill -STOP $(pid_of $from)
    attach data --node $to --move
    [ $D != $OLD ]
    kill $3 $(pid_of $from)
    within 45 dead
    umount /mnt/v
    mkdir -p /mnt/w; mount $D /mnt/w
    (cd /mnt/w && sha1sum --quiet -c /tmp/sums)
    [ ! -e /mnt/w/late ]
    umount /mnt/w
    fsck.ext4 -n -f $D >/tmp/fsck 2>&1 || { cat /tmp/fsck; false; }
    within 20 one
}
dead() { ! dd if=/dev/zero of=/mnt/v/late bs=4k count=1 conv=fsync 2>/dev/null; }
one() { [ "$(ls /sys/class/nvme | wc -l)" = 1 ]; }
attach data --node node-1
mount $D /mnt/v
gone node-1 node-2 -CONT
step "moved to another node while its engine stood still: the old device fails and goes, the new one has all files"
mount $D /mnt/v
gone node-2 node-1 -KILL
within 60 ready
orlop volume detach data >/dev/null
within 20 none
step "moved back from an engine that was killed then: the one that comes back lets the old device fail and go"
kill -INT $DEV; wait $DEV

rm -rf /tmp/data; head -c 32 /dev/urandom | base64 >/tmp/secret; chmod 600 /tmp/secret
start 1 --secret /tmp/secret
orlop volume create data --size 64MiB --copies 1 >/dev/null
dmesg -C
attach data
mkfs.ext4 -q $D; mount $D /mnt/v; echo kept >/mnt/v/file; sync
[ "$(stat -c %a /sys/class/nvme/*/dhchap*_secret | sort -u)" = 600 ]
crash node-1
timeout 20 dd if=/dev/urandom of=/mnt/v/more bs=64k count=8 conv=fsync status=none
quiet
[ $(dmesg | grep -c 'qid 0: authenticated') -ge 2 ]
within 10 grep -qx 20 /sys/class/nvme/*/ctrl_loss_tmo
step "with a secret: both ends prove it, also when the kernel connects again, which takes no time"

cat /dev/nvme-fabrics >/tmp/fabrics; mount --bind /tmp/fabrics /dev/nvme-fabrics
orlop volume create plain --size 16MiB --copies 1 >/dev/null
plain plain
grep -q 'no device by NVMe/TCP' /tmp/data/log/node-1.log
umount /dev/nvme-fabrics
orlop volume detach plain >/dev/null
step "where the kernel does not connect a device is made over FUSE"

kill -9 $DEV; BEGUN=$SECONDS
timeout 100 dd if=/dev/zero of=/mnt/v/late bs=4k count=1 conv=fsync 2>/dev/null && false
TOOK=$((SECONDS - BEGUN))
umount /mnt/v
within 10 none
[ $TOOK -ge 10 ]
[ $TOOK -le 60 ]
step "no engine comes back: I/O fails after $TOOK s, and the device goes"
echo "device: ok"
