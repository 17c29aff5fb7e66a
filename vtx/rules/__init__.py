"""What silicon decides: entry checks, what exits, transitions, and the delivery of events."""
