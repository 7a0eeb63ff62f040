"""Rendering of values as terminal text."""
