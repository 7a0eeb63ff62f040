"""Models: echo, a command, a Python function, or a service behind HTTP."""
