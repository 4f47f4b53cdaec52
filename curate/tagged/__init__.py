"""The tagged dataset: writing it, reading it, and choosing, ordering and formatting its rows."""
