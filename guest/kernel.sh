#!/bin/sh
# Fetches a kernel for the test guest from the distribution, without installing it.
# Usage: kernel.sh DIR
# Leaves DIR/vmlinuz, and for a guest with a network DIR/modules/*.ko (uncompressed) and DIR/modules/order, the order in which to load them;
# DIR/disk-modules has what comes on top for a guest with disks, in *.ko and order-disks.
set -eu
export LC_ALL=C
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Debian's cloud kernel: small, and it has the drivers of virtual machines and no others.
fetch_debian() {
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends:/ { print $2; exit }')
  if [ -z "$package" ]; then
    apt-get update
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
  fi
  # The lists may be older than the archive, where a security update replaces the file that they name.
  apt-get download "$package" || { apt-get update && apt-get download "$package"; }
  dpkg -x ./*.deb root
  cp root/boot/vmlinuz-* "$out/vmlinuz.new"
}

fetch_fedora() {
  dnf download kernel-core kernel-modules-core
  mkdir root
  for package in ./*.rpm; do rpm2cpio "$package" | (cd root && cpio -idm --quiet); done
  cp root/lib/modules/*/vmlinuz "$out/vmlinuz.new"
}

if command -v apt-get >/dev/null; then
  fetch_debian
elif command -v dnf >/dev/null; then
  fetch_fedora
else
  echo "The test guest needs a Linux kernel from apt-get (Debian) or dnf (Fedora); neither is here." >&2
  exit 1
fi

modules=$(find root -path '*/lib/modules/*/modules.builtin')
modules=${modules%/*}
rm -rf "$out/modules" "$out/disk-modules"
mkdir "$out/modules" "$out/disk-modules"

# add_module FOLDER/ORDER NAME: the module and before it what it depends on, as the module itself says (modinfo's `depends`).
add_module() {
  [ ! -f "$out/modules/$2.ko" ] && [ ! -f "$out/disk-modules/$2.ko" ] || return 0
  target=$out/${1%/*}/$2.ko
  file=$(find "$modules" -name "$(echo "$2" | sed 's/_/[-_]/g').ko*")
  case $file in
    *.ko) cp "$file" "$target" ;;
    *.ko.xz) xz -dc "$file" >"$target" ;;
    *.ko.zst) zstd -qdc "$file" >"$target" ;;
    *.ko.gz) gzip -dc "$file" >"$target" ;;
    *)
      grep -q "/$2\.ko$" "$modules/modules.builtin" || { echo "The kernel has no $2." >&2; exit 1; }
      return 0
      ;;
  esac
  for dependency in $(tr '\0' '\n' <"$target" | sed -n 's/^depends=//p' | tr , ' '); do add_module "$1" "$dependency"; done
  echo "$2.ko" >>"$out/$1"
}
for module in virtio_pci virtio_net; do add_module modules/order $module; done
# ata_piix is the IDE controller of machine type pc; Debian's cloud kernel has none for q35's.
for module in virtio_blk virtio_scsi ata_piix sd_mod ext4; do add_module disk-modules/order-disks $module; done
# Last, because it is what says that the kernel is complete.
mv "$out/vmlinuz.new" "$out/vmlinuz"
