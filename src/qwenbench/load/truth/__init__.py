"""The truth server: streams with known timing, to measure the client against."""
