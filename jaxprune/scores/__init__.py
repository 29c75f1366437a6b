"""What is each weight worth? A score is any function ``(params, grads) -> tree``; higher = kept."""

from jaxprune.scores.chance import random as random
from jaxprune.scores.gradients import taylor as taylor
from jaxprune.scores.weights import magnitude as magnitude
