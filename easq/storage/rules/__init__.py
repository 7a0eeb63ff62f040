"""The rules of a stream, without I/O, threads or clocks."""
