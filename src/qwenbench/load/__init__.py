"""How it is sent and timed: transports, SSE decoding, request records."""
