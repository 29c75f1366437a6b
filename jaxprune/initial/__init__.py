"""How is a network pruned before it is trained? Drivers around scores: iterative, or by chance."""

from jaxprune.initial.chance import random_masks as random_masks
from jaxprune.initial.rounds import exponential as exponential
from jaxprune.initial.rounds import iterate as iterate
from jaxprune.initial.rounds import linear as linear
