"""The published claims that jaxprune reproduces, one folder each. Run with `python -m`."""
