"""How much of a secret may be shown."""

from __future__ import annotations


def mask(secret: str) -> str:
    """`secret` as it may be shown: four characters of a long one at most, and nothing of its length."""
    return "****" + (secret[-4:] if len(secret) >= 12 else "")
