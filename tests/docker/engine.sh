#!/bin/bash
# engine.sh start|stop: the engine of engine-in-namespaces.sh; a test stops and starts it in mid-run.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
case "$1" in
  start)
    PATH="$here/doubles:$PATH" setsid dockerd --config-file="$ENGINE_FOLDER/daemon.json" \
      --data-root="$ENGINE_FOLDER/data" --exec-root="$ENGINE_FOLDER/exec" --pidfile="$ENGINE_FOLDER/dockerd.pid" \
      --host="$DOCKER_HOST" >>"$ENGINE_FOLDER/dockerd.log" 2>&1 </dev/null &
    engine=$!
    for _ in $(seq 300); do
      docker version >/dev/null 2>&1 && exit 0
      kill -0 "$engine" 2>/dev/null || break
      sleep 0.1
    done
    echo "The Docker engine did not start:" >&2
    tail -20 "$ENGINE_FOLDER/dockerd.log" >&2
    exit 125
    ;;
  stop)
    engine=$(cat "$ENGINE_FOLDER/dockerd.pid")
    kill "$engine"
    while kill -0 "$engine" 2>/dev/null; do sleep 0.05; done
    ;;
esac
