#!/bin/sh
# Prints the path of a Python 3.12 (or newer, up to 3.13) that can create virtual environments.
# Looks at $PYTHON, the PATH and pyenv's versions; otherwise says what is missing and exits 1.
set -u

usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not ((3, 12) <= sys.version_info[:2] <= (3, 13)))' >/dev/null 2>&1
}

pyenv_root=${PYENV_ROOT:-$HOME/.pyenv}
for candidate in ${PYTHON:-} python3.12 python3 python python3.13 \
    "$pyenv_root"/versions/3.12*/bin/python "$pyenv_root"/versions/3.13*/bin/python; do
    # A pyenv shim exists on the PATH even where no version is selected, so each candidate is really run.
    path=$(command -v "$candidate" 2>/dev/null) || continue
    if usable "$path"; then
        "$path" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done

for candidate in python3.12 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; then
        echo "wamkit: $candidate is Python 3.12 but cannot create virtual environments; install its venv module" \
            "(Debian and Ubuntu: apt-get install python3.12-venv) and run make again." >&2
        exit 1
    fi
done
echo "wamkit: no Python 3.12 found on the PATH (python3.12, python3) or in $pyenv_root/versions; install one" \
    "(Debian and Ubuntu: apt-get install python3.12 python3.12-venv; pyenv: pyenv install 3.12) or name it:" \
    "make install PYTHON=/path/to/python3.12" >&2
exit 1
