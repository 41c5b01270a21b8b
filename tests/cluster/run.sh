#!/usr/bin/env bash
# make test-cluster: sweeps over a real Ray cluster on this machine, a head and three more nodes with simulated cards.
# QWENBENCH_CLUSTER_HOME says where Ray is installed (default ~/.cache/qwenbench/test-cluster), 900 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
home=${QWENBENCH_CLUSTER_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/qwenbench/test-cluster}
tests/cluster/setup.sh "$home"
# nodes and driver take qwenbench from the checkout; Ray's workers must find it too
export PYTHONPATH=$PWD/src PATH=$home/bin:$PATH
exec "$home/bin/python" -m pytest tests/cluster --timeout 400 "$@"
