"""Agreement, changes and their intervals: statistics that several commands share."""
