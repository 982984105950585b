#!/usr/bin/env bash
# container.sh ROOT IMAGE MOUNTS: make ROOT, in a mount namespace of its own, what a container would see:
# the folders that the file IMAGE names, one a line, and MOUNTS (FROM:TO,...). Nothing else is there.
set -euo pipefail
root=$1 image=$2 mounts=$3
mount --make-rprivate /
mount -t tmpfs none "$root"
bind() { # FROM TO
    if [ -L "$1" ]; then # /bin of a merged /usr
        mkdir -p "$root$(dirname "$2")"
        cp -P "$1" "$root$2"
    elif [ -d "$1" ]; then
        mkdir -p "$root$2"
        mount --rbind "$1" "$root$2"
    else
        echo "container: $1 is not there" >&2
        exit 1
    fi
}
while read -r folder; do bind "$folder" "$folder"; done < "$image"
mkdir -p "$root/tmp"
IFS=,
for pair in $mounts; do bind "${pair%%:*}" "${pair#*:}"; done
