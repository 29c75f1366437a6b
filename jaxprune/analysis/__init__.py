"""Seeing what was pruned: figures, tables and pictures."""

from jaxprune.analysis import plot as plot
from jaxprune.analysis._plan_rows import Plan as Plan
from jaxprune.analysis._plan_rows import PlanRow as PlanRow
from jaxprune.analysis._rows import Row as Row
from jaxprune.analysis._rows import Summary as Summary
from jaxprune.analysis.plan import plan as plan
from jaxprune.analysis.summary import summary as summary
