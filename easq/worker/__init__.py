"""The inference engine of a queue."""
