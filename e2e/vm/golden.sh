# Runs in the guest: the kernel's own initiator against the kernel's own target over its loopback, one capture per scene
# in /vm/golden/SCENE.pcap. `orlop-e2e golden` cuts the captures into byte streams (e2e/src/golden.rs).
set -e
trap 'echo "golden: failed at line $LINENO"; dmesg | tail -n 20' ERR
mkdir -p /vm/golden
modprobe nvmet-tcp
modprobe nvme-tcp
modprobe null_blk nr_devices=0
N=/sys/kernel/config/nullb/ram
mkdir $N
for setting in memory_backed=1 discard=1 blocksize=4096 size=64 power=1; do echo ${setting#*=} >$N/${setting%=*}; done

NQN=nqn.2026-01.io.orlop:golden
HOST="-q nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555 -I 11111111-2222-3333-4444-555555555555"
C=/sys/kernel/config/nvmet
S=$C/subsystems/$NQN
mkdir $S $S/namespaces/1 $C/ports/1
echo 1 >$S/attr_allow_any_host
echo ORLOPGOLDEN >$S/attr_serial
echo /dev/ram >$S/namespaces/1/device_path
echo 00112233-4455-6677-8899-aabbccddeeff >$S/namespaces/1/device_uuid
echo 1 >$S/namespaces/1/enable
for setting in adrfam=ipv4 trtype=tcp traddr=127.0.0.1 trsvcid=4420; do echo ${setting#*=} >$C/ports/1/addr_${setting%=*}; done
ln -s $S $C/ports/1/subsystems/$NQN

# Data to recognise: block b of a pattern p is "p block b " over and over.
pattern() { # NAME BLOCKS FILE
    for ((b = 0; b < $2; b++)); do yes "$1 block $b " | tr -d '\n' | head -c 4096 || true; done >$3
}
capture() { tcpdump -Z root -q -U -i lo -s 0 -w /vm/golden/$1.pcap 'tcp port 4420' 2>/tmp/tcpdump & DUMP=$!
    until grep -q listening /tmp/tcpdump; do sleep 0.1; done; }
captured() { sleep 1; kill -INT $DUMP; wait $DUMP || true; dmesg -C; }
connect() { nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN $HOST --nr-io-queues=1 --queue-size=16 "$@"
    D=; until [ -b "$D" ]; do sleep 0.1; D=$(ls -d /dev/nvme*n1 2>/dev/null | head -n 1); done; }
io() { # one command each; the controller takes 16 KiB in a capsule, more is asked for by R2T
    pattern "$1" 1 /tmp/w1; pattern "$1" 4 /tmp/w4; pattern "$1" 6 /tmp/w6
    nvme write $D -s 1 -c 0 -z 4096 -d /tmp/w1
    nvme write $D -s 8 -c 3 -z 16384 -d /tmp/w4
    nvme write $D -s 16 -c 5 -z 24576 -d /tmp/w6
    nvme write $D -s 2 -c 0 -z 4096 -d /tmp/w1 --force-unit-access
    nvme read $D -s 1 -c 0 -z 4096 -d /tmp/r1; cmp /tmp/w1 /tmp/r1
    nvme read $D -s 16 -c 5 -z 24576 -d /tmp/r6; cmp /tmp/w6 /tmp/r6
    nvme flush $D -n 1
}
step() { echo "[$(cut -d' ' -f1 /proc/uptime) s] $*"; }

step discovery
capture discovery
nvme discover -t tcp -a 127.0.0.1 -s 4420 $HOST
captured

step connect
capture connect
connect
nvme disconnect -n $NQN
captured

step io
capture io
connect
io plain
nvme write-zeroes $D -s 8 -c 1
nvme read $D -s 8 -c 3 -z 16384 -d /tmp/r4
cmp <(head -c 8192 /dev/zero) <(head -c 8192 /tmp/r4)
nvme dsm $D -n 1 --ad --blocks=2,1 --slbs=16,20
nvme compare $D -s 2 -c 0 -z 4096 -d /tmp/w1 || echo "compare: the kernel's target has none"
nvme disconnect -n $NQN
captured

step digests
capture digests
connect --hdr-digest --data-digest
io digested
nvme disconnect -n $NQN
captured

step errors
capture errors
nvme connect -t tcp -a 127.0.0.1 -s 4420 -n nqn.2026-01.io.orlop:absent $HOST && exit 1
connect --keep-alive-tmo=2
nvme read $D -s 16384 -c 0 -z 4096 -d /tmp/r1 && exit 1
nvme io-passthru $D --opcode=0xc1 --namespace-id=1 && exit 1
nvme get-log $D -i 0x7f -l 64 && exit 1
sleep 3
nvme disconnect -n $NQN
captured
step done
