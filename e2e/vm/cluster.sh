# Read by the scripts that run `orlop dev` in the guest: how it is started and killed, and what is printed when something
# does not hold. /vm/orlop is the program.
set -eE
step() { echo "[$(cut -d' ' -f1 /proc/uptime) s] $*"; }
trouble() {
    echo "failed at line $1: $2"
    grep -s . /sys/class/nvme/*/{state,subsysnqn}; dmesg | tail -n 25; tail -n 15 /tmp/dev.log; tail -n 25 /tmp/data/log/node-*.log; orlop volume list -o json | tail -n 60
}
trap 'trouble "$LINENO" "$BASH_COMMAND"' ERR
within() { # seconds, command: until it succeeds
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > end)); then echo "not in time: $*"; return 1; fi
        sleep 0.1
    done
}
ready() { [ "$(orlop node list -o json | jq '[.[] | select(.state == "Ready" and .pid != null)] | length')" = "$NODES" ]; }
pid_of() { orlop node list -o json | jq -r ".[] | select(.name == \"$1\").pid"; }
start() { # nodes, more options of orlop dev
    NODES=$1; shift
    orlop dev --nodes $NODES --disk-size 300MiB --data /tmp/data --listen 127.0.0.1:7070 "$@" >>/tmp/dev.log 2>&1 & DEV=$!
    within 60 ready
}
restarted() { local now; now=$(pid_of "$1"); [ -n "$now" ] && [ "$now" != null ] && [ "$now" != "$2" ] && ready; }
crash() { # node: kill -9, and wait until there is another process
    local before; before=$(pid_of $1); kill -9 $before; within 60 restarted $1 $before
}
none() { [ -z "$(ls /sys/class/nvme)" ]; }
quiet() { ! dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|aborted journal|blocked for more'; }

cp /vm/orlop /usr/local/bin/orlop
export ORLOP_API=http://127.0.0.1:7070 ORLOP_FRONTEND=auto
