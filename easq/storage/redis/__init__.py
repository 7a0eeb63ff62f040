"""The engine on Redis, for any number of servers."""
