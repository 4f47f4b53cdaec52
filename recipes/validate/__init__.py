"""`curate validate`: training by recipes, and what became of every item."""
