"""`curate report`: one HTML file of what is in a run, how sure, and every item."""
