#!/bin/sh
# Builds agent_console with the Node of .venv: `console.sh build` what the engine serves, `check` and `test` what
# `make check` and `make test` ask for. Stamps hold the sums of what each was made from: a second run has nothing to do.
set -eu
cd "$(dirname "$0")/.."

what=$1
PATH=$PWD/.venv/bin:$PATH
export PATH npm_config_update_notifier=false
# What the engine says is part of it: a change there that the console does not follow must stop its build.
inputs() {
    find agent_console -type f -not -path 'agent_console/node_modules/*' -not -path 'agent_console/dist/*' \
        -not -path 'agent_console/src/generated/*' -print0 | sort -z
    printf '%s\0' docs/openapi.json docs/wire.json tools/console.sh
}
sums() { inputs | xargs -0 sha256sum; }
current() { [ -e "$1" ] && [ "$(sums)" = "$(cat "$1")" ]; }

stamp=agent_console/node_modules/.$what-passed
[ "$what" = build ] && stamp=agent_console/dist/.made
current "$stamp" && exit 0
exec 9<agent_console
flock 9 # `make run` and `make test` may be started together
current "$stamp" && exit 0

packages=agent_console/node_modules/.made
if ! sha256sum --check --status "$packages" 2>/dev/null; then
    echo "安装控制台的软件包 / installing the console's packages (agent_console/package-lock.json)"
    (cd agent_console && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) || {
        echo "安装失败：请检查本机 npm 的软件源设置与网络 / failed: check this machine's npm registry setting and the network" >&2
        exit 1
    }
    sha256sum agent_console/package-lock.json agent_console/package.json >"$packages"
fi

before=$(sums)
case $what in
    build) echo "构建控制台 / building the console" ;;
esac
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! (cd agent_console && npm run --silent "$what") >"$log" 2>&1; then
    cat "$log" >&2
    echo "控制台未通过 / the console failed: npm run $what (agent_console)" >&2
    exit 1
fi
[ "$what" = build ] || cat "$log"
# Of what was there when it began: who writes meanwhile gets another build.
printf '%s\n' "$before" >"$stamp"
