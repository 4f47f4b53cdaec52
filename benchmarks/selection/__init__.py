"""What to train on, in worlds small enough to train in by the hundred."""
