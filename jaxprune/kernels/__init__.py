"""Products with compressed weights: one function, several implementations."""

from jaxprune.kernels import autotune as autotune
from jaxprune.kernels import tuning as tuning
from jaxprune.kernels.dispatch import CANDIDATES as CANDIDATES
from jaxprune.kernels.dispatch import Candidate as Candidate
from jaxprune.kernels.dispatch import layout_of as layout_of
from jaxprune.kernels.sparse_matmul import sparse_matmul as sparse_matmul
