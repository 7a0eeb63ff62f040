"""Storage of entries: each verb is one atomic step."""
