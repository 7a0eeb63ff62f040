"""Clients of one stream of a queue service: operations, watches, bulk puts with a journal, waiting."""
