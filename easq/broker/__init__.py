"""The rules of the queue, over any storage engine."""
