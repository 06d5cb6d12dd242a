#!/usr/bin/env bash
# A newer QEMU beside this machine's own, for tests: Debian trixie's 10.0, with all its libraries, in a folder of its own. Prints the
# folder of its programs on stdout, and everything else on stderr. If it cannot be had, it prints nothing on stdout, the reason on
# stderr, and ends well: tests that need it are skipped. Needs no root: apt only resolves and downloads (40 MB), with an index of its
# own and an empty list of installed packages, from the Debian mirror that this machine uses. The system stays as it is.
#
#   scripts/newer-qemu.sh
#     VMFERRY_CACHE   where it is kept, in qemu-10.0 (default ~/.cache/vmferry)
set -euo pipefail

readonly SUITE=trixie
readonly MACHINE=pc-q35-10.0    # what it must know, to be of use
readonly DOWNLOAD_SECONDS=180   # a closed network often swallows packets instead of refusing them
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
readonly LIBRARIES=usr/lib/x86_64-linux-gnu

cache=${VMFERRY_CACHE:-$HOME/.cache/vmferry}
folder=$cache/qemu-10.0
exec 3>&1 1>&2 # stdout is for the folder alone

say() { echo "newer-qemu: $*"; }
cannot() { say "not available: $*"; exit 0; }
found() { echo "$folder/bin" >&3; exit 0; }

# Of the sources with this machine's own suite; a third party's may be among them, and lacks ours. --print-uris needs neither root nor network.
debian_mirrors() {
  # shellcheck source=/dev/null
  (. /etc/os-release && [[ ${ID:-} == debian && -n ${VERSION_CODENAME:-} ]] && apt-get update --print-uris 2>/dev/null |
    sed -nE "s,^'(.*)/dists/($VERSION_CODENAME|oldstable|stable)/main/binary-amd64/Packages.*,\1,p" | sort -u)
}

# apt keeps this machine's proxies, credentials and time-outs, which are in /etc/apt/apt.conf.d, but none of its hooks, pins or packages.
configure_apt() {
  mkdir -p "$staged"/apt/{lists,archives}/partial
  : >"$staged/apt/status"
  cat >"$staged/apt/apt.conf" <<CONFIGURATION
Dir::Etc::SourceList "$staged/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$staged/apt";
Dir::State::Lists "$staged/apt/lists";
Dir::State::Status "$staged/apt/status";
Dir::Cache "$staged/apt";
Dir::Cache::Archives "$staged/apt/archives";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Acquire::Retries "1";
Acquire::http::Timeout "20";
#clear APT::Architectures;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear Acquire::IndexTargets::deb::DEP-11;
CONFIGURATION
}

quiet_apt() {
  timeout "$DOWNLOAD_SECONDS" apt-get -q -c "$staged/apt/apt.conf" "$@" >"$staged/apt/log" 2>&1
}

# `exec -a`, so that the process's command line begins with the program that was started, and not with the loader.
write_wrapper() { # <program> <its further arguments>
  cat >"$staged/bin/$1" <<WRAPPER
#!/bin/bash
# QEMU of Debian $SUITE, with its own libraries, modules and firmware.
root=\${0%/*}/../root
export QEMU_MODULE_DIR=\$root/$LIBRARIES/qemu
exec -a "\$0" "\$root/$LIBRARIES/ld-linux-x86-64.so.2" --library-path "\$root/$LIBRARIES" "\$root/usr/bin/$1"${2:+ $2} "\$@"
WRAPPER
  chmod 755 "$staged/bin/$1"
}

if [[ -x $folder/bin/qemu-system-x86_64 ]]; then found; fi
began=$SECONDS
for program in apt-get dpkg-deb flock; do
  command -v "$program" >/dev/null || cannot "no $program here"
done
[[ $(dpkg --print-architecture) == amd64 ]] || cannot "for amd64 only, and this is $(dpkg --print-architecture)"
mkdir -p "$cache" 2>/dev/null && [[ -w $cache ]] || cannot "cannot write to $cache; set VMFERRY_CACHE to a folder that can be written"
exec 9>"$cache/.newer-qemu.lock"
flock -n 9 || { say "waiting for another to install it"; flock 9; }
if [[ -x $folder/bin/qemu-system-x86_64 ]]; then found; fi

rm -rf "$folder".?????? # what a killed one left: with the lock held, nobody works in these
staged=$(mktemp -d "$folder.XXXXXX") || cannot "cannot make a folder in $cache"
trap 'rm -rf "$staged"' EXIT
mirrors=$(debian_mirrors) && [[ -n $mirrors ]] || cannot "no mirror of Debian in /etc/apt"
configure_apt
for mirror in $mirrors; do
  say "downloading QEMU of Debian $SUITE from $mirror"
  echo "deb [arch=amd64$([[ -e $KEYRING ]] && echo " signed-by=$KEYRING")] $mirror $SUITE main" >"$staged/apt/sources.list"
  if updated=$(quiet_apt update && echo yes); then break; fi
done
[[ -n $updated ]] || cannot "$mirror gives no index of $SUITE: $(grep -E '^[EW]:' "$staged/apt/log" | head -1 || true)"
quiet_apt install --download-only qemu-system-x86 qemu-utils || cannot "$mirror does not give QEMU of $SUITE: $(grep -E '^E:' "$staged/apt/log" | head -1 || true)"

# Unpacked, never installed: no package's script runs.
mkdir "$staged/root" "$staged/bin"
for package in "$staged"/apt/archives/*.deb; do
  dpkg-deb --extract "$package" "$staged/root" 2>"$staged/apt/log" || cannot "cannot unpack ${package##*/} into $cache: $(head -1 "$staged/apt/log")"
done
rm -rf "$staged/apt" "$staged"/root/{etc,var} "$staged"/root/usr/share/{doc,man,locale}
write_wrapper qemu-system-x86_64 "-L \"\$root/usr/share/qemu\" -L \"\$root/usr/share/seabios\""
write_wrapper qemu-storage-daemon
write_wrapper qemu-img
for program in qemu-storage-daemon qemu-img; do
  printed=$("$staged/bin/$program" --version 2>&1) || cannot "$program of $SUITE does not run here: $printed"
done
machines=$("$staged/bin/qemu-system-x86_64" -machine help 2>&1) || cannot "qemu-system-x86_64 of $SUITE does not run here: $machines"
grep -q "^$MACHINE " <<<"$machines" || cannot "QEMU of $SUITE knows no machine $MACHINE"

# The whole folder appears by one rename, so that a killed one leaves no half of a QEMU behind.
chmod 755 "$staged"
rm -rf "$folder"
mv -T "$staged" "$folder"
say "installed $("$folder/bin/qemu-img" --version | head -1) in $((SECONDS - began)) s"
found
