"""Definitions of every metric, statistics, bounds, recommendation, comparison."""
