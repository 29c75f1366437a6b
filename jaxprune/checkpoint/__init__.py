"""Checkpoints of sparse training: atomic, with masks packed to one bit a weight."""

from jaxprune.checkpoint.store import latest_step as latest_step
from jaxprune.checkpoint.store import restore as restore
from jaxprune.checkpoint.store import save as save
