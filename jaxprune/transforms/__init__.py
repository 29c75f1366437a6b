"""Sparse training: optax transforms that wrap an optimizer."""

from jaxprune.transforms._state import Health as Health
from jaxprune.transforms._state import Method as Method
from jaxprune.transforms._state import State as State
from jaxprune.transforms._state import get_masks as get_masks
from jaxprune.transforms.export import Report as Report
from jaxprune.transforms.export import check as check
from jaxprune.transforms.export import final_params as final_params
from jaxprune.transforms.export import forward_params as forward_params
from jaxprune.transforms.export import value_and_grad as value_and_grad
from jaxprune.transforms.gradual import gradual as gradual
from jaxprune.transforms.static import static as static
