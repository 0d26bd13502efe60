#!/bin/sh
# setup.sh [demo|fuzz|pacemaker]: makes a fresh checkout ready to run: what is missing from the distribution, the Node packages, the native addon, the compiled TypeScript.
# `npm run demo` and `npm test` call it; it is done at once when there is nothing to do. Everything it prints goes to standard error, so that
# what comes after it may print JSON.
set -eu
cd "$(dirname "$0")/.."
purpose=${1:-}
log=.cache/setup.log

say() { echo "setup: $*" >&2; }

# step TEXT COMMAND...: what the command prints goes to the log, and is shown when it fails. The log is that of the last run that had a step.
step() {
  say "$1"
  shift
  [ -n "${logged:-}" ] || : >"$log"
  logged=$(($(wc -l <"$log") + 1))
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1 && return
  tail -n "+$logged" "$log" | tail -n 40 >&2
  say "'$*' failed; the whole log is in $log"
  exit 1
}

# needed PACKAGE PACKAGE: by their names in Debian and in Fedora.
needed() {
  debian="$debian $1"
  fedora="$fedora $2"
}

has() { command -v "$1" >/dev/null; }

# clang with libFuzzer.
has_fuzzer() { has clang++ && ls "$(clang++ --print-runtime-dir)"/libclang_rt.fuzzer*.a >/dev/null 2>&1; }

has_pacemaker() { has pacemakerd && has corosync && has crm_attribute && has crm_mon; }

has_promtool() { has promtool || [ -x .cache/promtool ]; }

# Looks for the files themselves: asking the package manager would take longer than all the rest, and they may come from elsewhere.
find_missing() {
  debian=''
  fedora=''
  find_missing_to_run
  # Whoever wants to see it only needs none of these.
  [ "$purpose" = demo ] || find_missing_to_test
}

find_missing_to_run() {
  has qemu-system-x86_64 || needed qemu-system-x86 qemu-system-x86-core
  has qemu-img && has qemu-nbd && has qemu-io || needed qemu-utils qemu-img
  has cmake || needed cmake cmake
  has make || needed make make
  has cc || needed gcc gcc
  has c++ || needed g++ gcc-c++
  has ld || needed binutils binutils
  has cpio || needed cpio cpio
  has xz || needed xz-utils xz
  has zstd || needed zstd zstd
  has ip || needed iproute2 iproute
  has flock && has setpriv || needed util-linux util-linux
  has openssl || needed openssl openssl
  # The guest has no shared libraries: its busybox and its programs are linked statically.
  has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || needed busybox-static busybox
  [ -f "$(cc -print-file-name=libc.a 2>/dev/null)" ] || needed libc6-dev glibc-static
  has mke2fs || needed e2fsprogs e2fsprogs
  [ -f /usr/include/sqlite3.h ] || needed libsqlite3-dev sqlite-devel
  [ -f /usr/include/openssl/ssl.h ] || needed libssl-dev openssl-devel
  [ -f /usr/include/xxhash.h ] || needed libxxhash-dev xxhash-devel
}

find_missing_to_test() {
  has nbdinfo || needed libnbd-bin libnbd
  has clang-format || needed clang-format clang-tools-extra
  has etcd || needed etcd-server etcd
  [ -f /usr/include/gtest/gtest.h ] || needed libgtest-dev gtest-devel
  [ -f /usr/include/benchmark/benchmark.h ] || needed libbenchmark-dev google-benchmark-devel
  has spin || needed spin spin
  # No service is started: the tests run a libvirtd of their own.
  has virsh || needed libvirt-clients libvirt-client
  has libvirtd || needed libvirt-daemon libvirt-daemon
  [ -f /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so ] ||
    [ -f /usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so ] ||
    needed libvirt-daemon-driver-qemu libvirt-daemon-driver-qemu
  has_promtool || has apt-get || needed prometheus /usr/bin/promtool
  [ "$purpose" != fuzz ] || has_fuzzer || needed 'clang libclang-rt-dev' 'clang compiler-rt'
  [ "$purpose" != pacemaker ] || has_pacemaker || needed 'pacemaker corosync pacemaker-cli-utils' 'pacemaker corosync pacemaker-cli'
  # The packages, their unit, manual pages and completions.
  has rpmbuild && has rpm || needed rpm rpm-build
  has rpmlint || needed rpmlint rpmlint
  has systemd-analyze && has systemd-sysusers || needed systemd systemd
  [ -f /usr/include/seccomp.h ] || needed libseccomp-dev libseccomp-devel
  # The web page's tests.
  has chromium || has chromium-browser || needed chromium chromium
  [ -f /usr/lib/ocf/lib/heartbeat/ocf-shellfuncs ] || needed resource-agents resource-agents
  has shellcheck || needed shellcheck ShellCheck
  has xmllint || needed libxml2-utils libxml2
  has socat || needed socat socat
  has man || needed man-db man-db
  has mandoc || needed mandoc mandoc
  has zsh || needed zsh zsh
  has fish || needed fish fish
}

install_missing() {
  find_missing
  [ -n "$debian" ] || return 0
  # Debian starts what it installs: a cluster of this machine alone, which nobody asked for.
  case $debian in
    *pacemaker*) [ ! -d /run/systemd/system ] || step 'masking corosync and pacemaker' systemctl mask corosync.service pacemaker.service ;;
  esac
  if has apt-get; then
    step 'reading the package lists' apt-get update
    # shellcheck disable=SC2086 # The packages are words.
    step "installing$debian" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $debian
  elif has dnf; then
    # shellcheck disable=SC2086
    step "installing$fedora" dnf install -y --setopt=install_weak_deps=False $fedora
  else
    say "some programs and libraries are missing, and there is neither apt-get nor dnf to install them. Please install, by their names
in Debian:$debian
in Fedora:$fedora"
    exit 1
  fi
  find_missing
  [ -z "$debian" ] || { say "still missing after the installation:$debian"; exit 1; }
}

# promtool alone: Debian's package prometheus would bring a server, start it, and pull its web pages' libraries in.
fetch_promtool() {
  folder=.cache/promtool.new
  rm -rf $folder
  mkdir $folder
  step 'reading the package lists' apt-get update
  step 'fetching promtool' sh -ec "cd $folder; apt-get download prometheus; dpkg-deb --fsys-tarfile ./*.deb | tar -x ./usr/bin/promtool"
  mv $folder/usr/bin/promtool .cache/promtool
  rm -r $folder
}

# is_older STAMP PATH...: whether anything in the paths has changed since. Folders count: a file that was removed changes its folder.
is_older() {
  stamp=$1
  shift
  [ ! -f "$stamp" ] || [ -n "$(find "$@" -newer "$stamp" | head -n 1)" ]
}

# build_when_older NAME TEXT COMMAND PATH...: the stamp has the time at which the build began, so that a change during it isn't missed.
build_when_older() {
  stamp=.cache/$1.stamp
  text=$2
  command=$3
  shift 3
  is_older "$stamp" "$@" || return 0
  touch "$stamp.new"
  # shellcheck disable=SC2086 # The command is words.
  step "$text" $command
  mv "$stamp.new" "$stamp"
}

if [ "$(uname -s) $(uname -m)" != 'Linux x86_64' ]; then
  say 'the demo and the tests run QEMU x86-64 guests on Linux on x86-64'
  exit 69
fi
if [ "$(id -u)" != 0 ]; then
  say 'root is needed: to read and write the memory of QEMU, to make network namespaces, and to install what is missing'
  exit 77
fi
node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 17) ? 0 : 1)' || {
  say "Node.js 20.17 or later is needed, this is $(node --version)"
  exit 69
}

mkdir -p .cache
install_missing
exec 9>.cache/setup.lock
flock 9
[ "$purpose" = demo ] || has_promtool || fetch_promtool

# No install scripts: none of the packages needs one, and npm would build the addon by node-gyp besides.
if is_older node_modules/.package-lock.json package-lock.json; then
  step 'installing the Node packages' npm ci --ignore-scripts --include=dev --no-audit --no-fund
fi
CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
export CMAKE_BUILD_PARALLEL_LEVEL
[ -f build/Release/colo_agent.node ] || rm -f .cache/native.stamp
build_when_older native 'building the native addon' 'npm run build:native' native CMakeLists.txt package-lock.json
[ -f dist/cli/main.js ] || rm -f .cache/dist.stamp
build_when_older dist 'compiling the TypeScript' 'npm run build:ts' src tsconfig.json tsconfig.build.json package-lock.json
