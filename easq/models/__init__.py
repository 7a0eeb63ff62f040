"""Run a model: echo, a command, or a service behind HTTP."""
