#!/bin/sh
# Installs what the browser tests need, where it is missing, and runs them. Screenshots: .cache/browser/.
set -eu
cd "$(dirname "$0")/../.."
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    command -v apt-get >/dev/null || { echo "tests/browser: install chromium and its driver first" >&2; exit 2; }
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q
    $sudo apt-get install -q -y --no-install-recommends chromium chromium-driver
fi
.venv/bin/python -c "import selenium" 2>/dev/null || .venv/bin/python -m pip install -q selenium
exec .venv/bin/python -m pytest tests/browser -q -p no:cacheprovider "$@"
