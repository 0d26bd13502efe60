#!/bin/sh
# Fetches a newer QEMU from one of Debian's newer suites, beside the distribution's own, into a cache folder.
# Usage: newer-qemu.sh SUITE DIR     SUITE: trixie (QEMU 10.0) or sid (11.1 or newer)
# Leaves DIR/SUITE (a root folder) and DIR/qemu-SUITE, a wrapper that runs it with its own loader and libraries.
# Needs root and debootstrap (Debian); about a minute and 600 MB.
set -eu
suite=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
root=$dir/$suite
wrapper=$dir/qemu-$suite
[ -x "$wrapper" ] && exec "$wrapper" --version
command -v debootstrap >/dev/null || apt-get install -y --no-install-recommends debootstrap >/dev/null
if [ ! -e "$root/.complete" ]; then
  rm -rf "$root"
  debootstrap --variant=minbase "$suite" "$root" >"$dir/$suite.log"
  touch "$root/.complete"
fi
chroot "$root" sh -c 'DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends qemu-system-x86' >>"$dir/$suite.log" 2>&1
lib=$root/usr/lib/x86_64-linux-gnu
cat >"$wrapper" <<W
#!/bin/sh
exec $root/lib64/ld-linux-x86-64.so.2 --library-path $lib:$root/lib/x86_64-linux-gnu \\
  $root/usr/bin/qemu-system-x86_64 -L $root/usr/share/qemu -L $root/usr/share/seabios "\$@"
W
chmod +x "$wrapper"
"$wrapper" --version
