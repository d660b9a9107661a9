# Runs in the guest: the Linux kernel's initiator against the target named in /vm/target (ADDRESS, ADVERTISED, PORT, NQN, and
# WHOLE=1 for the longest parts, too):
# discovery,
# ext4, XFS, fio with verification, write-zeroes, discard, digests, keep-alive. What a user's node would do.
# Ends with `interop: ok`; every line before is something that held.
set -e
. /vm/target
step() { echo "[$(cut -d' ' -f1 /proc/uptime) s] $*"; }
dmesg -C
trap 'echo "interop: failed at line $LINENO: $BASH_COMMAND"; dmesg | tail -n 30' ERR
[ -z "$CAPTURE" ] || { tcpdump -Z root -q -U -i any -s 256 -w /vm/interop.pcap "tcp port $PORT" 2>/dev/null & sleep 1; }
if [ "$ADDRESS" = self ]; then # The kernel's own target instead: judges this script.
    ADDRESS=127.0.0.1
    modprobe nvmet-tcp; modprobe null_blk nr_devices=0
    R=/sys/kernel/config/nullb/ram C=/sys/kernel/config/nvmet S=/sys/kernel/config/nvmet/subsystems/$NQN
    mkdir $R; for s in memory_backed=1 discard=1 blocksize=4096 size=400 power=1; do echo ${s#*=} >$R/${s%=*}; done
    mkdir $S $S/namespaces/1 $C/ports/1; echo 1 >$S/attr_allow_any_host
    echo /dev/ram >$S/namespaces/1/device_path; echo 1 >$S/namespaces/1/enable
    for s in adrfam=ipv4 trtype=tcp traddr=127.0.0.1 trsvcid=$PORT; do echo ${s#*=} >$C/ports/1/addr_${s%=*}; done
    ln -s $S $C/ports/1/subsystems/$NQN
fi
modprobe nvme-tcp
connect() {
    nvme connect -t tcp -a $ADDRESS -s $PORT -n $NQN "$@" >/dev/null
    for ((i = 0; i < 300; i++)); do
        D=$(ls -d /dev/nvme*n1 2>/dev/null | head -n 1)
        [ -b "$D" ] && return
        sleep 0.1
    done
    echo "no block device appeared"
    return 1
}
disconnect() {
    nvme disconnect -n $NQN >/dev/null
    for ((i = 0; i < 300; i++)); do [ -b "$D" ] || return 0; sleep 0.1; done
    echo "$D stayed"
    return 1
}
verify() { # more options of fio
    fio --name=verify --filename=$D --direct=1 --ioengine=io_uring --rw=randwrite --bsrange=4k-128k --blockalign=4k \
        --iodepth=16 --offset=16m --size=32m --verify=crc32c --verify_fatal=1 --randseed=7 "$@" >/tmp/fio ||
        { cat /tmp/fio; return 1; }
}
files() { # on a fresh file system of type $1: what was written is there after it was mounted again
    mkfs.$1 -q $2 $D; mkdir -p /mnt/v; mount $D /mnt/v
    cp -r /usr/bin /mnt/v/; (cd /mnt/v && find . -type f -print0 | xargs -0 sha1sum >/tmp/sums)
    umount /mnt/v; mount $D /mnt/v
    (cd /mnt/v && sha1sum --quiet -c /tmp/sums); rm -rf /mnt/v/bin; fstrim /mnt/v; umount /mnt/v
    step "$1: $(wc -l </tmp/sums) files, the same after unmounting; removed and trimmed"
}

nvme discover -t tcp -a $ADDRESS -s $PORT >/tmp/discovery
grep -qx "subnqn:  $NQN" /tmp/discovery
grep -qx "traddr:  $ADVERTISED" /tmp/discovery
step "discover: $NQN at $ADVERTISED"
connect --nr-io-queues=1 --nr-write-queues=1
step "connect: $D, $(blockdev --getsize64 $D) bytes in blocks of $(blockdev --getss $D)"
nvme id-ctrl $D | grep -E '^(mn|sn|fr|ver|mdts|oncs|vwc|ioccsz) ' | tr -s ' ' | paste -sd' '
for log in id-ns ns-descs list-ns smart-log error-log show-regs; do
    [ $log = show-regs ] && device=${D%n1} || device=$D
    nvme $log $device >/tmp/out 2>&1 || { echo "nvme $log:"; cat /tmp/out; false; }
done
nvme get-feature $D -f 7 >/dev/null
nvme list -o json | grep -q $D
step "nvme-cli: id-ns, ns-descs, list-ns, smart-log, error-log, show-regs, get-feature, list"
if nvme connect -t tcp -a $ADDRESS -s $PORT -n $NQN-absent >/tmp/out 2>&1; then echo "connected to nowhere"; false; fi
END=$(($(blockdev --getsize64 $D) / $(blockdev --getss $D)))
if nvme read $D -s $END -c 0 -z 4096 -d /tmp/out >/dev/null 2>&1; then false; fi
step "refused: a subsystem that is not there, a read beyond the end"
dmesg -C # The kernel rightly complains about these two.
files ext4
[ "$WHOLE" = 0 ] || files xfs -f
verify
step "fio: 32 MiB in pieces of 4 to 128 KiB, verified"
fio --name=load --filename=$D --direct=1 --ioengine=io_uring --rw=randrw --bs=4k --iodepth=8 --size=8m --time_based \
    --runtime=5 --output=/tmp/load --eta=never & LOAD=$!
sleep 2; nvme reset ${D%n1}; wait $LOAD
dmesg | grep -q 'resetting controller'
dmesg -C
step "reset of the controller under load: no I/O error"
disconnect
connect --hdr-digest --data-digest
verify --verify_only
step "fio: all of it still there after a new connect, now with digests"
verify
step "fio: written and verified with digests"
blkdiscard -f --zeroout --offset 16777216 --length 1048576 $D
cmp -n 1048576 <(dd if=$D bs=1M skip=16 count=1 iflag=direct status=none) /dev/zero
step "write-zeroes: 1 MiB reads as zeros"
blkdiscard -f --offset 33554432 --length 1048576 $D
dd if=$D bs=1M skip=32 count=1 iflag=direct of=/dev/null status=none
step "discard: taken"
disconnect
connect --keep-alive-tmo=2
sleep 6
dd if=$D of=/dev/null bs=4096 count=1 iflag=direct status=none
disconnect
step "keep-alive: alive after three times its time-out without I/O"
if dmesg | grep -iE 'nvme.*(error|timeout|reset|reconnect|failed|invalid|broken)'; then
    echo "interop: the kernel complained"
    exit 1
fi
[ "$WHOLE" = 1 ] || { echo "interop: ok"; exit 0; }
# Half a minute and more otherwise.
echo 5 >/sys/module/nvme_core/parameters/io_timeout; echo 1 >/proc/sys/net/ipv4/tcp_syn_retries
connect --keep-alive-tmo=2 --reconnect-delay=1
verify --rate=,8m --eta=never & LOAD=$!
sleep 1
INTERFACE=$(ip route get $ADDRESS | grep -o ' dev [a-z0-9]*' | cut -d' ' -f3)
ip link set $INTERFACE down
sleep 6
ip link set $INTERFACE up
wait $LOAD
dmesg | grep -q 'Successfully reconnected'
disconnect
step "link cut for 6 s under load, longer than the keep-alive: reconnected, all of it verified"
echo "interop: ok"
