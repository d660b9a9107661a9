# Runs in the guest: the Linux kernel's target on a RAM disk, for Orlop's initiator on the host, which reaches port 4420
# through QEMU; until the host writes /vm/done.
set -e
NQN=nqn.2026-01.io.orlop:kernel
modprobe nvmet-tcp
modprobe null_blk nr_devices=0
R=/sys/kernel/config/nullb/ram C=/sys/kernel/config/nvmet S=/sys/kernel/config/nvmet/subsystems/$NQN
mkdir $R $S $S/namespaces/1 $C/ports/1
for s in memory_backed=1 discard=1 blocksize=4096 size=400 power=1; do echo ${s#*=} >$R/${s%=*}; done
echo 1 >$S/attr_allow_any_host
echo /dev/ram >$S/namespaces/1/device_path
echo 1 >$S/namespaces/1/enable
for s in adrfam=ipv4 trtype=tcp traddr=0.0.0.0 trsvcid=4420; do echo ${s#*=} >$C/ports/1/addr_${s%=*}; done
ln -s $S $C/ports/1/subsystems/$NQN
echo listening >/vm/listening
for ((i = 0; i < 3000; i++)); do [ -e /vm/done ] && break; sleep 0.1; done
dmesg | grep nvmet
[ -e /vm/done ]
