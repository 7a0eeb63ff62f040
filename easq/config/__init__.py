"""The configuration file: its profiles, their keys, and where each value comes from."""
