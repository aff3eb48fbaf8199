#!/bin/sh
# Puts the locked packages into .venv: `environment.sh run` what runs, `environment.sh dev` also what checks and tests.
# A stamp holds the sums of what the environment was made from, so that a second run has nothing to do.
set -eu
cd "$(dirname "$0")/.."

kind=$1
python=${PYTHON:-python3}
lock=requirements/$kind.txt
stamp=.venv/made-for-$kind
inputs="$lock requirements/uv.txt pyproject.toml tools/environment.sh"
# Everything that runs is in the test lock too.
made() { sha256sum --check --status "$stamp" 2>/dev/null && .venv/bin/python -c '' 2>/dev/null; }

made && exit 0
exec 9<requirements
flock 9 # `make run` and `make test` may be started together
made && exit 0

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "需要 Python 3.11 或更新 / Python 3.11 or newer is needed (PYTHON=… names another one)" >&2
    exit 1
fi
PYTHON=$python tools/system-packages.sh python3-venv
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "建立 Python 环境 / making the Python environment (.venv)"
    "$python" -m venv --clear .venv
fi
python=.venv/bin/python
"$python" -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/uv.txt

# uv does not read pip's configuration: hand over what this machine has set there, unless uv has its own.
eval "$("$python" tools/pip_to_uv.py)"
export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
echo "安装锁定的软件包 / installing the locked packages ($lock)"
.venv/bin/uv pip install --quiet --python "$python" --require-hashes -r "$lock"
.venv/bin/uv pip install --quiet --python "$python" --no-deps --no-build-isolation --offline -e .

# shellcheck disable=SC2086 # the inputs are words
sha256sum $inputs >"$stamp"
[ "$kind" = run ] || sha256sum requirements/run.txt $(echo "$inputs" | cut -d' ' -f2-) >.venv/made-for-run
