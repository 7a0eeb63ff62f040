"""The network of both wings: single exchanges, many at once, WebSockets; retry, deadlines, proxies and TLS."""
