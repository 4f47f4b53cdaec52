"""The page of `curate report` in a browser: what it costs, and its picture in the docs."""
