"""`curate gaps`: what is missing for the items that training will not solve."""
