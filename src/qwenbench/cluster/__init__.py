"""Launches on the cards of a cluster: the driver is a sweep whose launches are made on Ray's nodes."""
