"""Which shapes may zeros take? A pattern turns scores and a budget into a mask."""

from jaxprune.patterns.block import Block as Block
from jaxprune.patterns.channel import Channel as Channel
from jaxprune.patterns.nm import NM as NM
from jaxprune.patterns.unstructured import Unstructured as Unstructured
