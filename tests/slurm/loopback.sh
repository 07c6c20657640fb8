#!/bin/bash
# A Slurm of one node on the loopback interface, for tests: controller and node daemon as root, no accounting.
#   loopback.sh start DIR [CONTROLLER_PORT NODE_PORT]   writes DIR/slurm.conf; use it as SLURM_CONF
#   loopback.sh stop DIR                                 ends the daemons that `start` of that DIR has started
# Needs root and the packages slurm-wlm and munge.
set -euo pipefail

usage() { sed -n '2,5s/^# \?//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
action=$1
mkdir -p "$2"
dir=$(realpath "$2")
export SLURM_CONF=$dir/slurm.conf

write_configuration() {
  local host cpus memory
  host=$(hostname -s)
  cpus=$(nproc)
  memory=$(slurmd -C | sed -n 's/.*RealMemory=\([0-9]*\).*/\1/p')
  cat > "$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=$1
SlurmdPort=$2
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
# No control groups: they are seldom writable in a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=2
Waittime=0
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
}

start_munge() {
  munge -n > "$dir/munge.out" 2>&1 && return
  install -d -o munge -g munge -m 755 /run/munge
  if [ ! -s /etc/munge/munge.key ]; then
    install -d -o munge -g munge -m 700 /etc/munge
    (umask 077; head -c 128 /dev/urandom > /etc/munge/munge.key)
    chown munge: /etc/munge/munge.key
  fi
  runuser -u munge -- /usr/sbin/munged --pid-file=/run/munge/munged.pid
  cp /run/munge/munged.pid "$dir/munged.pid"
}

# stop_daemon PIDFILE NAME: ends the process of a pid file, if it is still the daemon of that name.
stop_daemon() {
  local pid
  [ -s "$1" ] || return 0
  pid=$(cat "$1")
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid"
}

case $action in
  start)
    mkdir -p "$dir/state" "$dir/spool"
    write_configuration "${3:-16817}" "${4:-16818}"
    start_munge
    slurmctld
    slurmd
    for _ in $(seq 100); do
      [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && exit 0
      sleep 0.1
    done
    echo "loopback.sh: the node did not become idle, see $dir/slurmctld.log and $dir/slurmd.log" >&2
    exit 1
    ;;
  stop)
    stop_daemon "$dir/slurmd.pid" slurmd
    stop_daemon "$dir/slurmctld.pid" slurmctld
    stop_daemon "$dir/munged.pid" munged
    ;;
  *) usage ;;
esac
