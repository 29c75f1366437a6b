"""One-shot pruning of a pretrained language model, and its recovery."""
