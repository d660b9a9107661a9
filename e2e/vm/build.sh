#!/bin/bash
# Builds the Linux guest that judges Orlop's NVMe/TCP: a Debian 6.12 kernel and a small trixie userland, as
# $OUT/{vmlinux,initrd,rootfs.img,versions}. Run by `orlop-e2e` (e2e/src/guest.rs), which names OUT after a hash of this
# folder, so a changed recipe is a new guest. Needs root, Debian 12 or later, and its package mirror.
#
# 1 tools of the host  2 kernel package  3 userland  4 modules by dependency  5 initrd  6 root image
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
OUT=${1:?usage: build.sh OUT}
WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/orlop-vm-build.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
START=$SECONDS
step() { echo "vm build: $((SECONDS - START)) s: $*"; }
apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-remove --no-install-recommends "$@" >"$WORK/apt.log" 2>&1 ||
    { tail -n 20 "$WORK/apt.log" >&2; return 1; }; }

# Loaded by the initrd to reach the root; and everything that a test may load later, with what these depend on.
BOOT_MODULES="virtio_pci virtio_blk virtio_console virtio_net virtio_rng ext4 overlay 9p 9pnet_virtio crc32c_generic"
MODULES="nvme-tcp nvmet-tcp nvme-fabrics brd null_blk loop xfs ext4 tls sch_netem sch_tbf veth dm-mod dm-flakey
    dh_generic hmac sha256_generic sha512_generic crc32c_generic crc32c-intel ublk_drv nbd"
PACKAGES=nvme-cli,fio,e2fsprogs,xfsprogs,util-linux,mount,kmod,iproute2,procps,tcpdump,jq

step "tools of the host"
# The mirror that this machine's apt uses, whatever the format of its lists.
URIS=$(grep -hsE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources |
    grep -oE '[a-z+]+://[^ ]+' | grep -v security || true)
MIRROR=$(grep -m1 -E '/debian/?$' <<<"$URIS" || head -n 1 <<<"$URIS")
[ -n "$MIRROR" ] || { echo "vm build: apt on this machine names no mirror" >&2; exit 1; }
. /etc/os-release
if ! command -v qemu-system-x86_64 >/dev/null && [ "$VERSION_CODENAME" = bookworm ]; then
    # Stock bookworm's qemu would remove a preinstalled newer qemu-utils: take the backport, which fits both.
    grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d/ ||
        echo "deb $MIRROR bookworm-backports main" >/etc/apt/sources.list.d/orlop-backports.list
fi
apt-get update -qq || apt-get update -qq
command -v qemu-system-x86_64 >/dev/null ||
    if [ "$VERSION_CODENAME" = bookworm ]; then apt_install -t bookworm-backports qemu-system-x86; else apt_install qemu-system-x86; fi
apt_install mmdebstrap cpio zstd xz-utils busybox-static e2fsprogs kmod

step "kernel"
KERNEL=$(apt-cache search --names-only '^linux-image-6\.12\.[0-9.]*\+deb1[23]-amd64$' | cut -d' ' -f1 | sort -V | tail -n 1)
[ -n "$KERNEL" ] || { echo "vm build: no linux-image-6.12 package in this apt's sources" >&2; exit 1; }
(cd "$WORK" && apt-get download -qq -o APT::Sandbox::User=root "$KERNEL" && dpkg -x "$KERNEL"_*.deb kernel && rm "$KERNEL"_*.deb)
[ -d "$WORK/kernel/lib/modules" ] || ln -s usr/lib "$WORK/kernel/lib"
RELEASE=$(basename "$WORK"/kernel/lib/modules/*)
# A raw ELF boots at once; the packed image would be unpacked by the emulated CPU. Its payload is the one that starts an ELF.
for packer in "xz:fd377a585a00:xz" "zstd:28b52ffd:zstd" "gzip:1f8b08:gzip"; do
    IFS=: read -r name magic tool <<<"$packer"
    while read -r offset; do
        tail -c +$((offset + 1)) "$WORK/kernel/boot/vmlinuz-$RELEASE" | "$tool" -dcq 2>/dev/null >"$WORK/vmlinux" || true
        [ "$(head -c 4 "$WORK/vmlinux" | tail -c 3)" = ELF ] && break 2
    done < <(LC_ALL=C grep -obUaP "$(sed 's/../\\x&/g' <<<"$magic")" "$WORK/kernel/boot/vmlinuz-$RELEASE" | cut -d: -f1)
done
[ "$(head -c 4 "$WORK/vmlinux" | tail -c 3)" = ELF ] || { echo "vm build: no ELF in vmlinuz-$RELEASE" >&2; exit 1; }

step "userland"
mmdebstrap --quiet --variant=apt --mode=root --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --include="$PACKAGES" trixie "$WORK/root" "$MIRROR" 2>"$WORK/mmdebstrap.log" || { tail -n 20 "$WORK/mmdebstrap.log" >&2; exit 1; }
rm -rf "$WORK"/root/var/{cache,lib}/apt/* "$WORK"/root/usr/share/{zoneinfo,i18n,perl5}
VERSIONS=$(chroot "$WORK/root" dpkg-query -W -f '${Package} ${Version}\n' nvme-cli fio e2fsprogs xfsprogs tcpdump)

step "modules"
depmod -b "$WORK/kernel" "$RELEASE"
with_dependencies() { for m; do modprobe -d "$WORK/kernel" -S "$RELEASE" --show-depends "$m" 2>/dev/null || true; done |
    awk '$1 == "insmod" && !seen[$2]++ {print $2}'; }
plain() { case $1 in *.xz) xz -dc "$1" ;; *.zst) zstd -dcq "$1" ;; *) cat "$1" ;; esac >"$2"; }
DEST=$WORK/root/usr/lib/modules/$RELEASE
mkdir -p "$DEST"
cp "$WORK/kernel/lib/modules/$RELEASE"/modules.{builtin,builtin.modinfo,order} "$DEST/"
for module in $(with_dependencies $BOOT_MODULES $MODULES); do
    plain "$module" "$DEST/$(basename "${module%.ko*}").ko"
done
depmod -b "$WORK/root" "$RELEASE"

step "initrd"
mkdir -p "$WORK"/initrd/{bin,proc,sys,dev,modules,lower,rw,mnt}
cp /bin/busybox "$WORK/initrd/bin/"
cp "$HERE/initrd-init" "$WORK/initrd/init"
cp "$HERE/guest-init" "$WORK/root/guest-init"
chmod +x "$WORK/initrd/init" "$WORK/root/guest-init"
cp /bin/busybox "$WORK/root/usr/bin/busybox"
number=100
for module in $(with_dependencies $BOOT_MODULES); do
    plain "$module" "$WORK/initrd/modules/$number-$(basename "${module%.ko*}").ko"
    number=$((number + 1))
done
(cd "$WORK/initrd" && find . | cpio -o -H newc --quiet) >"$WORK/initrd.img"

step "root image"
MIB=$(($(du -sm "$WORK/root" | cut -f1) * 115 / 100 + 32))
mke2fs -q -t ext4 -O ^has_journal -m 0 -E lazy_itable_init=1 -d "$WORK/root" "$WORK/rootfs.img" "${MIB}M" >/dev/null

mkdir -p "$OUT"
mv "$WORK/vmlinux" "$WORK/rootfs.img" "$OUT/"
mv "$WORK/initrd.img" "$OUT/initrd"
# Written last: its presence says that the guest is complete.
{ echo "kernel $RELEASE ($KERNEL)"; echo "$VERSIONS"; } >"$OUT/versions"
step "done, $(du -sm "$OUT" | cut -f1) MiB in $OUT"
