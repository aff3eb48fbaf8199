#!/bin/sh
# Installs the named Debian packages that are missing, as root or with sudo; else says in one line what to install.
set -eu

present() {
    case "$1" in
        # What the package is for counts, not its name: it may have come some other way.
        python3-venv) "${PYTHON:-python3}" -c 'import ensurepip, venv' ;;
        baresip-core) command -v baresip ;;
        postgresql) ls /usr/lib/postgresql/*/bin/initdb || command -v initdb ;;
        libc6-dev) [ -e /usr/include/stdio.h ] ;;
        libfaketime) ls /usr/lib/*/faketime/libfaketimeMT.so.1 ;;
        *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

missing=
for package in "$@"; do
    present "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    as_root=sudo
else
    as_root=none
fi
if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "缺少系统软件包，请以 root 安装 / please install as root: apt-get install$missing" >&2
    exit 1
fi

echo "安装系统软件包 / installing system packages:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # the names are words, and an empty as_root is no word
if ! { $as_root apt-get -o DPkg::Lock::Timeout=120 update &&
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "安装失败，请以 root 安装后再试 / failed; install as root, then try again: apt-get install$missing" >&2
    exit 1
fi
for package in $missing; do
    present "$package" || {
        echo "$package 已安装但不可用 / $package is installed but does not work with $(command -v "${PYTHON:-python3}")" >&2
        exit 1
    }
done
