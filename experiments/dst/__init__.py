"""Dynamic sparse training against fixed masks, gradual pruning and dense training."""
