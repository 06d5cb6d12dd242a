#!/usr/bin/env bash
# Boots systemd as the first process of namespaces of its own, on a copy-on-write view of this machine's files, with this folder as /opt/vmferry. What it
# writes is in memory and goes with it; it sees neither network nor processes of this machine. For test/systemd, which starts it as:
#
#   unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child scripts/systemd-boot.sh FOLDER
#
# FOLDER is empty; FOLDER/etc/… are files to add.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
added=$(mktemp -d)
cp -r "$1/etc" "$added/"
mount -t tmpfs tmpfs "$1"
mkdir "$1"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
root=$1/root
cp -r "$added/etc" "$root/"
rm -rf "$added"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
# Whatever hierarchies this machine has, a namespace has the unified one to itself.
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --rbind /dev "$root/dev"
mkdir -p "$root/opt/vmferry" "$root/srv"
mount --bind "$here" "$root/opt/vmferry"
ip link set lo up
exec env -i container=vmferry PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd --unit=basic.target --log-target=console
