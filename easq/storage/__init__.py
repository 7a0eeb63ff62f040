"""Where entries live: every verb one atomic step."""
