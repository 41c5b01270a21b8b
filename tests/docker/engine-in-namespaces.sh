#!/bin/bash
# engine-in-namespaces.sh COMMAND...: runs a command beside a Docker engine of its own.
#
# The engine lives in network, mount and process namespaces that end with the command, and so does everything that
# it started. Needs root and Debian's docker.io (or any dockerd). Outside nothing is left but empty cgroup folders.
# In here nothing outside can be reached: images come from this machine.
#
# TEST DOUBLES, for a machine without a GPU, stand in for NVIDIA's parts (doubles/): the hook that makes --gpus
# acceptable, and the runtime that --runtime=nvidia names.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${ENGINE_FOLDER:-}" ]; then
  ENGINE_FOLDER=$(mktemp -d /tmp/qwenbench-docker.XXXXXX)
  export ENGINE_FOLDER
  trap 'rm -rf --one-file-system "$ENGINE_FOLDER"' EXIT
  unshare --net --mount --pid --fork --kill-child --mount-proc bash "$0" "$@"
  exit
fi

ip link set lo up
export DOCKER_HOST="unix://$ENGINE_FOLDER/docker.sock"
cat >"$ENGINE_FOLDER/daemon.json" <<JSON
{"runtimes": {"nvidia": {"path": "$here/doubles/nvidia-runtime"}}, "default-runtime": "nvidia"}
JSON
status=0
"$here/engine.sh" start || status=$?
if [ "$status" = 0 ]; then "$@" || status=$?; fi
"$here/engine.sh" stop || true
exit "$status"
