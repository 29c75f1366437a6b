"""The jaxpr reader: what a function does with each of its parameters."""

from jaxprune.graph import statistics as statistics
from jaxprune.graph.capture import Capture as Capture
from jaxprune.graph.capture import bar as bar
from jaxprune.graph.cost import Cost as Cost
from jaxprune.graph.factors import Factor as Factor
from jaxprune.graph.statistics import Statistic as Statistic
from jaxprune.graph.trace import Graph as Graph
from jaxprune.graph.trace import trace as trace
from jaxprune.graph.uses import Skipped as Skipped
from jaxprune.graph.uses import WeightUse as WeightUse
