"""Predictions and their routes: through the queue, to the gateway, to an instance, to a WebSocket service."""
