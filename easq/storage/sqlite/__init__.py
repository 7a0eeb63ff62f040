"""The durable engine: one SQLite file."""
