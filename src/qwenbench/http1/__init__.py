"""HTTP/1.1 served once: connections, framing, limits and back-pressure for the simulator and the proxy."""
