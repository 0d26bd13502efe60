#!/bin/sh
# Checks the format of every C++ file under native/ (--write: repairs it). Needs clang-format 14 or newer.
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
  --write) set -- -i ;;
  '') set -- --dry-run -Werror ;;
  *) echo "usage: scripts/lint-native.sh [--write]" >&2; exit 64 ;;
esac
if ! command -v clang-format >/dev/null; then
  echo "clang-format is missing: install clang-format (Debian) or clang-tools-extra (Fedora)" >&2
  exit 69
fi
find native \( -name '*.h' -o -name '*.cc' \) -exec clang-format --style=file "$@" {} +
