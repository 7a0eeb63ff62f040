"""Load tests of a queue or a model."""
