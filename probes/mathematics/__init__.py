"""Mathematical answers: put into one notation, read as what they are, and compared."""
