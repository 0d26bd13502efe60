#!/bin/sh
# node.sh NAME FOLDER AGENT CONTROL: corosync and Pacemaker as the only processes of a host whose namespaces (mount, pid, uts, ipc, net) are its own already.
# FOLDER has etc/corosync.conf, and is where the logs go; AGENT is the resource agent, CONTROL the socket of this host's daemon.
set -eu
name=$1 folder=$2 agent=$3 control=$4

hostname "$name"
mount --make-rprivate /
for each in /dev/shm /run /var/lib/pacemaker /var/lib/corosync /var/log /usr/lib/ocf/resource.d; do
  mount -t tmpfs tmpfs "$each"
done
mount --bind "$folder/etc" /etc/corosync
mkdir -p /usr/lib/ocf/resource.d/colo /run/colo-agent /run/crm /var/log/pacemaker
cd /var/lib/pacemaker
mkdir cib pengine blackbox cores
chown hacluster:haclient /run/crm /var/log/pacemaker . ./*
cp "$agent" /usr/lib/ocf/resource.d/colo/vm
ln -s "$control" /run/colo-agent/control.sock

corosync -f 2>"$folder/$name-corosync.log" &
until corosync-cfgtool -s >/dev/null 2>&1; do
  kill -0 $! || exit 1
  sleep 0.2
done
PCMK_logfile="$folder/$name-pacemaker.log" exec pacemakerd -f
