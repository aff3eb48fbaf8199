"""REST and WebSocket: typed messages in and out."""
