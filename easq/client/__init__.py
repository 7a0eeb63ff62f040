"""How to call a queue or a model endpoint."""
