#!/usr/bin/env bash
# A Slurm cluster of one machine, for tests: needs root and the Debian packages slurm-wlm and munge.
#
#   slurm_cluster.sh up FOLDER      # starts it; then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm_cluster.sh down FOLDER    # stops what was started, and nothing else
#
# Everything is in FOLDER: configuration, state, logs, sockets. The ports are free ones.
set -euo pipefail

command=${1:?"usage: slurm_cluster.sh up|down FOLDER"}
folder=$(realpath -m "${2:?"usage: slurm_cluster.sh up|down FOLDER"}")

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

up() {
  mkdir -p "$folder"/{state,spool}
  chmod 755 "$folder"
  local host
  host=$(hostname -s)
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credentials have expired; 120 s by default.
AuthInfo=socket=$folder/munge.socket,cred_expire=30
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=120
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all)
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
    --seed-file="$folder/munged.seed"
  export SLURM_CONF=$folder/slurm.conf
  slurmctld
  slurmd
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && return
    sleep 0.2
  done
  echo "the cluster did not start; see the logs in $folder" >&2
  down
  return 1
}

down() {
  SLURM_CONF=$folder/slurm.conf timeout 5 scancel --signal=KILL --full --user=root || true
  sleep 1
  for daemon in slurmd slurmctld munged; do
    [ -e "$folder/$daemon.pid" ] || continue
    pid=$(cat "$folder/$daemon.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.2
    done
  done
}

"$command"
