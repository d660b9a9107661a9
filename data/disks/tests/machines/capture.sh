#!/bin/sh
# Prints what Orlop's discovery of disks reads on this machine, in the format of this folder's README.md.
#
#   sh capture.sh [--mask-serials] [--no-contents] [--root FOLDER] >MACHINE.txt
#
# --mask-serials   serial numbers and world-wide names are replaced by numbers, each by the same one everywhere
# --no-contents    no device is opened; each is then one that cannot be read, as those of other machines always are
# --root FOLDER    the machine is one that lies in this folder, as the tests lay it out
#
# Nothing is written. Anybody may run it; only root may read devices, and of these only the bytes by which formats are
# known are printed, tables of partitions, and Orlop's own superblocks. Mounts are printed with their places, partitions
# with their names: look through it before you give it away.
#
# Needs a POSIX shell with awk, dd, od, readlink -f and tr: coreutils or busybox. The tests compare what discovery makes of
# its output with what it makes of the machine itself: what one reads and the other does not print is a failure.
set -u
export LC_ALL=C
ROOT='' MASK='' CONTENTS=1
while [ $# -gt 0 ]; do
    case $1 in
        --mask-serials) MASK=1 ;;
        --no-contents) CONTENTS='' ;;
        --root) ROOT=${2:?--root needs a folder} && shift ;;
        *) echo "capture.sh: what is $1? usage: capture.sh [--mask-serials] [--no-contents] [--root FOLDER]" >&2; exit 2 ;;
    esac
    shift
done
BASE=$(readlink -f "${ROOT:-/}") || { echo "capture.sh: there is no folder $ROOT" >&2; exit 1; }
BASE=${BASE%/}

# Where the bytes of formats lie, OFFSET:COUNT: those of data/pool/src/signature.rs. Below zero: from the end.
FRONT="0:22 32:8 54:8 64:4 82:8 510:2 512:20 1024:8 1080:2 1536:8 2048:6 4086:10 4096:8 4120:8 8192:6 16374:10 16384:6 \
32768:6 65526:10 65536:4 65588:6 65600:8 524288:8"
BACK="-8192:24 -4096:8 -4036:4 -1024:24 -512:8"

# The lines of the file at $1 that say anything.
lines() {
    [ -f "$ROOT/$1" ] && [ -r "$ROOT/$1" ] || return 0
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in *[[:cntrl:]]*) line=$(printf '%s' "$line" | tr '\001-\010\013-\037\177' ' ') ;; esac
        case $line in *[!\ \	]*) printf '%s = %s\n' "$1" "$line" ;; esac
    done <"$ROOT/$1" 2>/dev/null
}

# Where the link at $1 leads; nothing if it is none.
link() { [ ! -L "$ROOT/$1" ] || printf '%s -> %s\n' "$1" "$(readlink "$ROOT/$1")"; }

# The path at $1 without links.
real() { path=$(readlink -f "$ROOT/$1") && printf '%s' "${path#"$BASE"/}"; }

number() { cat "$ROOT/$1" 2>/dev/null || echo "$2"; }

holders() {
    for holder in "$ROOT/$1"/holders/*; do
        link "$1/holders/${holder##*/}"
    done
}

note() {
    [ ! -r "$ROOT/$1/dev" ] || lines "run/udev/data/b$(cat "$ROOT/$1/dev")"
}

# The bytes of a window of a device. `begin` is its first byte, from the front or, below zero, from the end.
WINDOW='
function at(offset, count,    hex, row) {
    for (hex = ""; count > 0; offset++ + count--) {
        row = offset - begin; row -= row % 16
        hex = hex (row in rows ? substr(rows[row], (offset - begin - row) * 2 + 1, 2) : "00")
    }
    return hex
}
# Only what is not zero says anything.
function show(offset, count,    hex) {
    if (offset < begin || offset - begin + count > read) return
    hex = at(offset, count)
    if (hex ~ /[1-9a-f]/) print "dev/" name " @" offset " " hex
}
function show_all(offset, count,    end) { for (end = offset + count; offset < end; offset += 32) show(offset, 32) }
function little(hex,    value) {
    for (value = 0; hex != ""; hex = substr(hex, 1, length(hex) - 2))
        value = value * 256 + (index("0123456789abcdef", substr(hex, length(hex) - 1, 1)) - 1) * 16 \
            + index("0123456789abcdef", substr(hex, length(hex), 1)) - 1
    return value
}
function table(offset,    array, count) {
    if (at(offset, 8) != "4546492050415254") return
    show_all(offset, 96)
    array = little(at(offset + 72, 8)) * block
    if (begin < 0) array -= blocks * block
    count = little(at(offset + 80, 4)) * little(at(offset + 84, 4))
    if (count <= 524288) show_all(array, count)
}
function zfs(label,    offset, hex) {
    for (offset = label + 131072; offset < label + 262144; offset += 1024) {
        hex = at(offset, 8)
        if (hex == "0cb1ba0000000000" || hex == "0000000000bab10c") show(offset, 8)
    }
}
$1 == "*" { again = 1; next }
{
    hex = ""
    for (i = 2; i <= NF; i++) hex = hex $i
    # To busybox a number that begins with 0 is octal.
    offset = $1; sub(/^0+/, "", offset)
    if (again && last != "") for (row = read + 16; row < offset + 0; row += 16) rows[row] = last
    again = 0; read = offset + 0; last = hex ~ /[1-9a-f]/ ? hex : ""
    if (last == "") next
    rows[read] = last
    if (!first++ && begin == 0) { match(last, /[1-9a-f]/); byte = read + int((RSTART - 1) / 2) }
}
END {
    if (read != count) { print "dev/" name " !"; exit }
    if (first && begin == 0) show(byte, 1)
    number = split(places, list, " ")
    for (i = 1; i <= number; i++) { split(list[i], place, ":"); show(place[1] + 0, place[2] + 0) }
    number = split(labels, list, " ")
    for (i = 1; i <= number; i++) zfs(list[i] + 0)
    table(begin == 0 ? block + 0 : -block)
    # What an MBR is divided into; without its mark these are data.
    if (begin == 0 && at(510, 2) == "55aa") show(446, 64)
    for (i = 0; begin == 0 && i <= 524288; i += 524288) if (at(i, 8) == "4f524c4f504f4f4c") show_all(i, 4096)
}'

# window NAME FROM SECTORS BEGIN PLACES LABELS
window() {
    dd if="$ROOT/dev/$1" bs=512 skip="$2" count="$3" 2>/dev/null | od -A d -t x1 | awk -v name="$1" -v count=$(($3 * 512)) \
        -v begin="$4" -v places="$5" -v labels="$6" -v block="$block" -v blocks=$((sectors * 512 / block)) "$WINDOW"
}

# What lies on the device $1 with $2 sectors and blocks of $3 bytes.
contents() {
    sectors=$2 block=$3
    if [ -z "$CONTENTS" ] || ! dd if="$ROOT/dev/$1" of=/dev/null bs=512 count=1 2>/dev/null; then
        echo "dev/$1 !"
        return
    fi
    looked_at=$((sectors < 2048 ? sectors : 2048))
    window "$1" 0 $looked_at 0 "$FRONT" "0 262144"
    # Members of a RAID, and labels of ZFS, lie at multiples of something.
    raid="$((-(sectors % 128 + 128) * 512)):4 $((-(sectors - (sectors - 16) / 8 * 8) * 512)):4"
    zfs="$((-(sectors % 512 + 512) * 512)) $((-(sectors % 512 + 1024) * 512))"
    window "$1" $((sectors - looked_at)) $looked_at $((-looked_at * 512)) "$BACK $raid" "$zfs"
}

partition() {
    for attribute in partition dev start size ro stat uevent; do lines "$1/$attribute"; done
    holders "$1"
    note "$1"
    [ "$(number "$1/size" 0)" = 0 ] || contents "${1##*/}" "$(number "$1/size" 0)" "$2"
}

# What a disk is on: a SCSI device, an NVMe controller, or an NVMe subsystem with its controllers.
device() {
    link "$1/device"
    on=$(real "$1/device")
    for attribute in subsysnqn transport model name serial wwid; do lines "$on/$attribute"; done
    # Four bytes of header, which are no text.
    [ ! -r "$ROOT/$on/vpd_pg80" ] ||
        printf '%s = XXXX%s\n' "$on/vpd_pg80" "$(tail -c +5 "$ROOT/$on/vpd_pg80" | tr '\000-\037\177' ' ')"
    for controller in "$ROOT/$on"/nvme*; do
        [ -f "$controller/transport" ] || continue
        link "$on/${controller##*/}"
        lines "$(real "$on/${controller##*/}")/transport"
    done
}

# Whether it is a volume of Orlop, or may be: discovery leaves it out, and who opens one may wait for its node for ever.
is_own() {
    case $(cat "$ROOT/$2/device/subsysnqn" 2>/dev/null) in nqn.2026-11.io.orlop:*) return 0 ;; esac
    case $1 in loop*) ;; *) return 1 ;; esac
    file=$(cat "$ROOT/$2/loop/backing_file" 2>/dev/null)
    case ${file% (deleted)} in '' | */volume | */volumeDevices/*) return 0 ;; *) return 1 ;; esac
}

# Whether it is of another machine, which may be gone.
is_remote() {
    case $1 in nbd* | rbd* | drbd* | ublkb*) return 0 ;; esac
    cat "$ROOT/$2/device/transport" "$ROOT/$2"/device/nvme*/transport 2>/dev/null | grep -qv '^pcie$'
}

disk() {
    size=$(number "sys/block/$1/size" 0)
    # Loop devices of nothing are many and say nothing.
    case $1:$size in loop*:0) return ;; esac
    folder=$(real "sys/block/$1")
    echo
    link "sys/block/$1"
    for attribute in dev size hidden; do lines "$folder/$attribute"; done
    [ "$size" != 0 ] && [ "$(number "$folder/hidden" 0)" = 0 ] || return
    for attribute in removable ro serial wwid nsid ext_range diskseq stat loop/backing_file dm/name queue/iostats \
        queue/rotational queue/logical_block_size queue/physical_block_size; do
        lines "$folder/$attribute"
    done
    [ ! -e "$ROOT/$folder/device" ] || device "$folder"
    holders "$folder"
    note "$folder"
    ! is_own "$1" "$folder" || return
    block=$(number "$folder/queue/logical_block_size" 512)
    if is_remote "$1" "$folder"; then echo "dev/$1 !"; else contents "$1" "$size" "$block"; fi
    for number in "$ROOT/$folder"/*/partition; do
        [ ! -f "$number" ] || { number=${number%/partition} && partition "$folder/${number##*/}" "$block"; }
    done
}

# The mounts of devices, and that of the root: where mounts cannot be read, nothing is known.
mounts() {
    lines "$1" | awk '{
        split(substr($0, index($0, " - ") + 3), source, " ")
        if ($5 !~ /^0:/ || source[2] ~ /^\/dev\// || $7 == "/") print
    }'
}

# Names below /dev by which mounts and swap may be called, and where they lead.
links() {
    { sed -n 's/.* - [^ ]* \(\/dev\/[^ ]*\) .*/\1/p' "$ROOT/proc/self/mountinfo"
        sed -n 's/^\(\/dev\/[^ 	]*\).*/\1/p' "$ROOT/proc/swaps"; } 2>/dev/null | sort -u | while read -r path; do
        [ -L "$ROOT$path" ] || continue
        up=$(dirname "${path#/dev/}" | sed 's/^\.$//; s/[^/][^/]*/../g; s/.$/&\//')
        target=$(real "${path#/}")
        printf '%s -> %s\n' "${path#/}" "$up${target#dev/}"
    done
}

machine() {
    [ -n "$ROOT" ] ||
        echo "# Printed by capture.sh. Kernel $(uname -r), udev $(udevadm --version 2>/dev/null || echo not there)."
    for entry in "$ROOT"/sys/block/*; do
        disk "${entry##*/}"
    done
    echo
    mounts proc/self/mountinfo
    mounts proc/1/mountinfo
    lines proc/swaps
    links
}

# What belongs to two disks is printed once: their controller, for one.
once() { awk '$0 == "" || !seen[$0]++'; }

mask() {
    awk '
    function secret(text) {
        gsub(/^[ \t]+|[ \t]+$/, "", text)
        # A shorter one says nothing of anybody, and may be part of a word.
        if (length(text) > 4 && !(text in number)) { number[text] = ++secrets; secret_of[secrets] = text }
    }
    { line[NR] = $0; text = $0; sub(/^[^ ]* = /, "", text) }
    $1 ~ /\/(serial|wwid)$/ { sub(/^(naa|eui|uuid|nvme|t10)\./, "", text); secret(text) }
    $1 ~ /\/vpd_pg80$/ { secret(substr(text, 5)) }
    text ~ /^E:ID_(SERIAL_SHORT|SCSI_SERIAL|WWN|WWN_WITH_EXTENSION)=/ { sub(/^[^=]*=(0x)?/, "", text); secret(text) }
    END {
        # The longest first: one may be part of another.
        for (i = 2; i <= secrets; i++)
            for (j = i; j > 1 && length(secret_of[j]) > length(secret_of[j - 1]); j--) {
                swapped = secret_of[j]; secret_of[j] = secret_of[j - 1]; secret_of[j - 1] = swapped
            }
        for (i = 1; i <= NR; i++) {
            text = line[i]; begin = ""
            if (match(text, /^[^ ]* = /)) { begin = substr(text, 1, RLENGTH); text = substr(text, RLENGTH + 1) }
            for (j = 1; j <= secrets; j++) {
                done = ""
                while (at = index(text, secret_of[j])) {
                    done = done substr(text, 1, at - 1) sprintf("%0" length(secret_of[j]) "d", number[secret_of[j]])
                    text = substr(text, at + length(secret_of[j]))
                }
                text = done text
            }
            print begin text
        }
    }'
}

if [ -n "$MASK" ]; then machine | once | mask; else machine | once; fi
