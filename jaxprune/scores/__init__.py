"""What is each weight worth? Higher = kept.

A score is any function ``(params, grads) -> tree``, called by a transform at each update. Those
that take a function and data, ``snip``, ``grasp`` and ``synflow``, are called by you, before
training.
"""

from jaxprune.scores.activation import gblm as gblm
from jaxprune.scores.activation import ria as ria
from jaxprune.scores.activation import wanda as wanda
from jaxprune.scores.chance import random as random
from jaxprune.scores.dual import dual_importance as dual_importance
from jaxprune.scores.dual import obs as obs
from jaxprune.scores.flow import grasp as grasp
from jaxprune.scores.flow import synflow as synflow
from jaxprune.scores.gradients import taylor as taylor
from jaxprune.scores.norms import gradient_norm as gradient_norm
from jaxprune.scores.sensitivity import snip as snip
from jaxprune.scores.weights import magnitude as magnitude
