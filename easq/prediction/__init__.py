"""Predictions and the ways they go: the queue, the gateway, an instance itself, a WebSocket service."""
