"""The queue service: its rules, and HTTP and WebSocket doors to them."""
