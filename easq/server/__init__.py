"""The queue service: the rules of a queue, and HTTP and WebSocket above them."""
