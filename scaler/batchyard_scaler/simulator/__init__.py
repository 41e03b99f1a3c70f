"""What a policy would have cost: a trace's arrivals replayed against it, with its peers beside it."""
