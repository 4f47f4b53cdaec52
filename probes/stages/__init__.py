"""The stages of `curate tag`: each reads files of the run folder and writes its own."""
