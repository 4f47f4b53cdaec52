"""`curate verify`: a verifier tried on answers with their golds."""
