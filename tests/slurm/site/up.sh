#!/usr/bin/env bash
# up.sh FOLDER: the daemons of a cluster, as the first process of namespaces of their own. All of it ends
# with this script, which ends with whoever holds its standard input.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$folder"/{state,spool-node1,spool-node2,root}
hostname head
# Addresses beside loopback's: glibc resolves no name on a machine that has that alone.
printf '127.0.0.1 localhost\n10.77.0.9 head\n10.77.0.1 node1\n10.77.0.2 node2\n' > "$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
ip link set lo up
for address in 10.77.0.9 10.77.0.1 10.77.0.2; do ip addr add "$address/24" dev lo; done
sed "s#@D@#$folder#g" "$here/slurm.conf" > "$folder/slurm.conf"
echo "Name=gpu File=$folder/gpu[0-7]" > "$folder/gres.conf"
echo "CgroupPlugin=cgroup/v1" > "$folder/cgroup.conf"
touch "$folder"/gpu{0..7}
: > "$folder/plugstack.conf"
if [ -e "$folder/pyxis.so" ]; then
    echo "required $folder/pyxis.so $here/container.sh $folder/root" > "$folder/plugstack.conf"
fi
export SLURM_CONF=$folder/slurm.conf MALLOC_ARENA_MAX=2
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --force --socket "$folder/munge.sock" --key-file "$folder/munge.key" --num-threads 2 \
    --pid-file "$folder/munged.pid" --log-file "$folder/munged.log" --seed-file "$folder/munge.seed"
slurmctld -c -f "$SLURM_CONF"
for node in node1 node2; do slurmd -N "$node" -f "$SLURM_CONF"; done
until [ "$(sinfo --noheader --Node --format %T | sort --unique)" = idle ]; do sleep 0.1; done
touch "$folder/ready"
while read -r _; do :; done
