"""Values to terminal text."""
