#!/bin/sh
# colo-agent, with a Node.js that it can run on: Fedora's and RHEL's have the version in the program's name where several may be installed.
main=$(dirname "$(readlink -f "$0")")/@MAIN@
for node in /usr/bin/node-24 /usr/bin/node-22 /usr/bin/node-20; do
  [ ! -x "$node" ] || exec "$node" "$main" "$@"
done
command -v node >/dev/null || {
  echo 'colo-agent: Node.js is missing: install nodejs, 20.17 or later' >&2
  exit 69
}
exec node "$main" "$@"
