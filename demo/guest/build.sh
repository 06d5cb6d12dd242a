#!/usr/bin/env bash
# Builds the test guest: OUTDIR/vmlinuz from the distribution's kernel package, OUTDIR/initramfs.img with init.c and the
# modules that reach its disks. Nothing is installed: the package is downloaded and unpacked. OUTDIR appears by one rename.
# Needs gcc, libc6-dev, apt-get with an index, dpkg-deb; xz or zstd where the kernel's modules are compressed.
set -euo pipefail

readonly WANTED=(virtio_pci virtio_blk sd_mod virtio_scsi) # sd_mod first, so that disks have names once virtio_scsi is in

(($# == 1)) || { echo "usage: ${0##*/} OUTDIR" >&2; exit 2; }
exec 1>&2
mkdir -p "${1%/*}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(realpath -m "$1")
[[ -e $out/vmlinuz && -e $out/initramfs.img ]] && exit 0

# Beside OUTDIR, so that the rename at the end stays on one file system.
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/packages" "$work/unpacked" "$work/root" "$work/out"

fail() { echo "guest: $*"; exit 1; }

# The real package behind a meta-package: what it depends on whose name has a version in it.
real_package() { # <meta-package> <prefix>
  apt-cache depends "$1" 2>/dev/null | sed -nE "s/^ *Depends: ($2-[0-9].*)/\1/p" | head -n 1
}

fetch_kernel() {
  local image packages
  if image=$(real_package linux-image-cloud-amd64 linux-image) && [[ -n $image ]]; then # Debian
    packages=("$image")
  elif image=$(real_package linux-image-virtual linux-image) && [[ -n $image ]]; then # Ubuntu keeps modules apart
    packages=("$image" "${image/#linux-image-/linux-modules-}")
  else
    fail "apt knows neither linux-image-cloud-amd64 nor linux-image-virtual; run apt-get update first"
  fi
  echo "guest: kernel ${packages[*]}"
  # As root, apt drops its privileges for a download and warns that it cannot write here; we let it keep them.
  (cd "$work/packages" && apt-get -q -o APT::Sandbox::User=root download "${packages[@]}") ||
    fail "apt-get download ${packages[*]}; an outdated index needs apt-get update"
  local package
  for package in "$work"/packages/*.deb; do dpkg-deb -x "$package" "$work/unpacked"; done
}

# Adds a module after those it depends on (its own .modinfo says which), unless the kernel has it built in.
declare -A added=()
add_module() { # <name>
  local pattern file name dependencies dependency
  pattern=${1//[-_]/[-_]}
  if [[ -n ${added[${1//-/_}]:-} ]]; then return; fi
  added[${1//-/_}]=1
  if grep -qE "/$pattern\.ko$" "$modules/modules.builtin"; then return; fi
  file=$(find "$modules/kernel" -regextype posix-extended -regex ".*/$pattern\.ko(\.xz|\.zst|\.gz)?" -print -quit)
  [[ -n $file ]] || fail "the kernel has no module $1"
  name=$work/root/modules/$1.ko
  case $file in
    *.xz) xz -dc "$file" >"$name" ;;
    *.zst) zstd -qdc "$file" >"$name" ;;
    *.gz) gzip -dc "$file" >"$name" ;;
    *) cp "$file" "$name" ;;
  esac
  dependencies=$(tr '\0' '\n' <"$name" | sed -n 's/^depends=//p' | tr ',' ' ')
  for dependency in $dependencies; do add_module "$dependency"; done
  echo "/modules/$1.ko" >>"$work/root/modules.order"
}

# One entry of a "newc" archive, which is all that a kernel needs: a header in hex, name and contents each padded to 4 bytes.
inode=0
cpio_entry() { # <name> <mode> [file]
  local size=0 name_size=$((${#1} + 1))
  [[ -z ${3:-} ]] || size=$(stat -c %s "$3")
  inode=$((inode + 1))
  printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s' $inode "$2" 0 0 1 0 "$size" 0 0 0 0 $name_size 0 "$1"
  head -c $((1 + (4 - (110 + name_size) % 4) % 4)) /dev/zero
  [[ -z ${3:-} ]] || cat "$3"
  head -c $(((4 - size % 4) % 4)) /dev/zero
}

write_initramfs() {
  local file
  cpio_entry modules 0040755
  for file in init modules.order modules/*.ko; do
    if [[ -f $file ]]; then cpio_entry "$file" 0100755 "$file"; fi
  done
  cpio_entry 'TRAILER!!!' 0
}

fetch_kernel
modules=$(find "$work/unpacked" -name modules.builtin -printf '%h' -quit)
[[ -n $modules ]] || fail "no modules.builtin in the kernel's packages"
mkdir "$work/root/modules"
for module in "${WANTED[@]}"; do add_module "$module"; done
gcc -static -O2 -Wall -pthread -o "$work/root/init" "$here/init.c"

# Not compressed: unpacking would cost an emulated CPU more than reading does.
(cd "$work/root" && write_initramfs) >"$work/out/initramfs.img"
install -m 644 "$work"/unpacked/boot/vmlinuz-* "$work/out/vmlinuz"
rm -rf "$out"
mv -T "$work/out" "$out"
