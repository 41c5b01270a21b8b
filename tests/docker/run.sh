#!/bin/bash
# Tests of the docker launcher on a real Docker engine (make test-docker): root, Linux, no GPU. Installs Debian's
# docker.io where no engine is; leaves nothing else behind. Arguments go to pytest.
set -euo pipefail

cd "$(dirname "$0")/../.."
python=.venv/bin/python
if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
  echo "Installing docker.io ..." >&2
  apt-get update -qq </dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables </dev/null >/dev/null
fi
images=$(mktemp -d /tmp/qwenbench-images.XXXXXX)
trap 'rm -rf "$images"' EXIT
# what Dockerfile.bench installs: no index can be reached in there
$python -m pip download -qq --disable-pip-version-check --no-deps --require-hashes -r requirements.lock -d "$images/wheels"
$python tests/docker/make_rootfs.py "$images/server" --server
$python tests/docker/make_rootfs.py "$images/base" --wheels "$images/wheels"
export QWENBENCH_TEST_IMAGES=$images
tests/docker/engine-in-namespaces.sh $python -m pytest tests/docker -p no:cacheprovider "$@"
