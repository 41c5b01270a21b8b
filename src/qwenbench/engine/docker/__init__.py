"""vLLM's container image over the `docker` command line, so that contexts, rootless engines and podman work too."""
