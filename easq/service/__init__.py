"""HTTP and WebSocket doors to the broker."""
