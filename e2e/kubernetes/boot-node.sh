#!/usr/bin/env bash
# Boots one node: `boot-node.sh NAME DISK CGROUP`, in new network, mount and UTS namespaces with private propagation.
# Says `booted` and then only holds the namespaces: the node is on for as long as this process lives.
set -euo pipefail
name=$1 disk=$2 cgroup=$3

hostname "$name"
# What other runs have mounted is not for a node to hold: its copies would keep that busy.
sort --reverse --key=5 /proc/self/mountinfo | while read -r _ _ _ _ point _; do
    case $point in
        /run/* | /tmp/* | /var/tmp/* | /mnt/*) umount --lazy "$(printf %b "$point")" ;;
    esac
done
mount --make-rshared /
# The node's disk: what kubelet, containerd and the pods write is in the run's folder. Each is a peer group of its own,
# so that a mount below it is not seen a second time below $disk.
for folder in /var/lib /var/log; do
    mkdir -p "$disk$folder"
    mount --bind "$disk$folder" "$folder"
    mount --make-private "$folder"
    mount --make-shared "$folder"
done
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netns /var/lib/kubelet /var/log/pods /var/log/containers

# The kubelet sets these for the whole machine, which other tests use too: here it finds them set as it wants them.
while read -r setting value; do
    mkdir -p "$disk/sys/${setting%/*}"
    echo "$value" > "$disk/sys/$setting"
    mount --bind "$disk/sys/$setting" "/proc/sys/$setting"
done << SETTINGS
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SETTINGS

# The kubelet wants the root of its cgroups to be there in every hierarchy.
for hierarchy in /sys/fs/cgroup/*/; do
    [[ -f $hierarchy/cgroup.procs ]] || continue
    mkdir -p "$hierarchy/$cgroup"
    if [[ -f $hierarchy/cpuset.cpus ]]; then
        cat "$hierarchy/cpuset.cpus" > "$hierarchy/$cgroup/cpuset.cpus"
        cat "$hierarchy/cpuset.mems" > "$hierarchy/$cgroup/cpuset.mems"
    fi
done
echo booted
exec sleep infinity
