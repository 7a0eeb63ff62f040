"""Load on a queue or a model, and the figures of it."""
