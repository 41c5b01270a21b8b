"""A run's folder on disk: names, durable writes, lock, journal, reading it back. Knows no metric."""
