#!/bin/sh
# Writes constraints.txt from what is installed in .venv: names and versions only, no addresses.
set -eu
cd "$(dirname "$0")/.."
{
    echo "# The exact versions wamkit is developed and tested with; \`make install\` applies them. Refresh with scripts/freeze.sh."
    .venv/bin/uv pip freeze --python .venv/bin/python | grep -E '^[A-Za-z0-9_.-]+==' | grep -vE '^(wamkit|pip)=='
} > constraints.txt.new
mv constraints.txt.new constraints.txt
