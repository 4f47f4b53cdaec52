"""The run folder: what lies in it, how it is locked, and how it is read back."""
