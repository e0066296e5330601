#!/bin/sh
# Creates .venv inside the checkout and installs wamkit with the extras named in the arguments
# (default: sim dev). Nothing is written outside the checkout: uv, its cache and every package live here.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd)
extras=$(echo "${*:-sim dev}" | tr ' ' ',')

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] < (3, 12))' >/dev/null 2>&1; then
    python=$(sh scripts/find_python.sh)
    echo "creating .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
fi
python=$here/.venv/bin/python

if ! .venv/bin/uv --version >/dev/null 2>&1; then
    "$python" -m pip install --quiet --no-cache-dir --disable-pip-version-check --constraint constraints.txt uv || {
        echo "wamkit: pip could not install uv; check the network (or pip's index configuration) and run make again." >&2
        exit 1
    }
fi

# A packaging index configured for pip is the one that uv uses too.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then
        UV_DEFAULT_INDEX=$index
        export UV_DEFAULT_INDEX
    fi
fi
UV_PYTHON_DOWNLOADS=never
UV_CACHE_DIR=${UV_CACHE_DIR:-$here/.cache/uv}
UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
export UV_PYTHON_DOWNLOADS UV_CACHE_DIR UV_HTTP_TIMEOUT
.venv/bin/uv pip install --quiet --python "$python" \
    --constraint constraints.txt --build-constraint constraints.txt \
    --editable ".[$extras]" --editable integrations/lerobot_policy_wamkit || {
    echo "wamkit: the installation of .[$extras] failed (see above); mend that and run make again," \
        "it continues where it stopped." >&2
    exit 1
}
case ",$extras," in
*,dev,*) # openpi's client and LIBERO, for tests: without their pins, see pyproject.toml
    .venv/bin/uv pip install --quiet --python "$python" --constraint constraints.txt \
        --build-constraint constraints.txt --no-deps --group openpi --group libero || {
        echo "wamkit: openpi-client or LIBERO could not be installed (see above); run make again," \
            "it continues where it stopped." >&2
        exit 1
    }
    ;;
esac
