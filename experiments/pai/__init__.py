"""Pruning before training: who loses a layer, and when."""
