#!/bin/sh
# Builds the test guests. Usage: build.sh DIR
# Leaves DIR/vmlinuz and DIR/initrd (Linux), DIR/initrd-disks (for a guest with disks, so that the others needn't unpack more) and
# DIR/baremetal.elf. Does nothing when they are newer than what they are made from. Takes a lock on DIR, so that any number may run at once;
# every file is replaced as a whole, so that a guest which boots from it isn't disturbed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
exec 9>"$out/lock"
flock 9

kernel_stamp=$(sha256sum <"$here/kernel.sh")
stamp=$(cat "$here"/* | sha256sum)
holds() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
is_complete() { for file in vmlinuz initrd initrd-disks baremetal.elf; do [ -f "$out/$file" ] || return 1; done; }
if holds "$out/stamp" "$stamp" && is_complete; then exit 0; fi
rm -f "$out/stamp"

work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
busybox=$(command -v busybox) || { echo "busybox is missing" >&2; exit 1; }
if ldd "$busybox" >/dev/null 2>&1; then
  echo "$busybox is not linked statically: install busybox-static" >&2
  exit 1
fi

if ! holds "$out/kernel.stamp" "$kernel_stamp" || [ ! -f "$out/vmlinuz" ]; then
  sh "$here/kernel.sh" "$out"
  echo "$kernel_stamp" >"$out/kernel.stamp"
fi

warnings='-Wall -Wextra -Wpedantic -Wshadow -Werror'
cd "$work"
mkdir -p root/bin root/lib root/proc root/sys root/dev root/etc disks/bin disks/lib/modules

# compile FOLDER PROGRAM OPTION...
compile() {
  folder=$1
  program=$2
  shift 2
  # shellcheck disable=SC2086 # The warnings are words.
  cc -std=gnu11 -O2 $warnings -s -o "$folder/bin/$program" "$here/$program.c" "$@"
}
for program in counter memcheck announce dirty load stream; do compile root $program -static; done
for program in diskcheck diskbench; do compile disks $program -static; done
# With the distribution's SQLite as it is: not every distribution has it for static linking. What it needs comes along.
compile disks sqld -lsqlite3
for library in $(ldd disks/bin/sqld | grep -o '/[^ ]*'); do
  mkdir -p "disks${library%/*}"
  cp "$library" "disks$library"
done
cp "$out"/disk-modules/* disks/lib/modules/
cp "$busybox" root/bin/busybox
cp -r "$out/modules" root/lib/modules
cp "$here/init" root/init
chmod 755 root/init
# Not compressed: under emulation the guest unpacks far more slowly than the host reads.
archive() { (cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet); }
archive root >initrd
# The kernel unpacks one archive after the other into the same root.
{ cat initrd && archive disks; } >initrd-disks

# -mgeneral-regs-only: nobody has switched the floating point unit on. No unwind tables: the multiboot header must come early.
# shellcheck disable=SC2086
cc -m32 -std=c11 -O2 $warnings -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables \
  -mgeneral-regs-only -c -o baremetal.o "$here/baremetal.c"
ld -m elf_i386 -N -Ttext 0x100000 -e _start --no-warn-rwx-segments -o baremetal.elf baremetal.o

mv initrd initrd-disks baremetal.elf "$out/"
echo "$stamp" >"$out/stamp"
