"""Seeing what was pruned: figures, tables and pictures."""

from jaxprune.analysis import plot as plot
from jaxprune.analysis._rows import Row as Row
from jaxprune.analysis._rows import Summary as Summary
from jaxprune.analysis.summary import summary as summary
