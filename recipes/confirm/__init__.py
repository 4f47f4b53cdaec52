"""`curate confirm`: what training made of the items, against what was predicted."""
