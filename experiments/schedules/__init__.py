"""When to begin and when to end pruning, at equal compute."""
