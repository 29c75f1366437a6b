"""How is the budget divided? An allocation is a function ``(shapes, sparsity) -> densities``."""

from jaxprune.allocation.erdos import ErdosRenyi as ErdosRenyi
from jaxprune.allocation.erdos import erdos_renyi as erdos_renyi
from jaxprune.allocation.erdos import erdos_renyi_kernel as erdos_renyi_kernel
from jaxprune.allocation.given import PerLayer as PerLayer
from jaxprune.allocation.given import Uniform as Uniform
from jaxprune.allocation.given import per_layer as per_layer
from jaxprune.allocation.given import uniform as uniform
from jaxprune.allocation.plus import Spared as Spared
from jaxprune.allocation.plus import erk_plus as erk_plus
from jaxprune.allocation.plus import uniform_plus as uniform_plus
from jaxprune.allocation.precrop import PreCrop as PreCrop
from jaxprune.allocation.precrop import precrop as precrop
from jaxprune.allocation.ranked import Global as Global
from jaxprune.allocation.ranked import global_ as global_
from jaxprune.allocation.ranked import minimum_threshold as minimum_threshold
from jaxprune.allocation.read import FromMasks as FromMasks
from jaxprune.allocation.read import from_masks as from_masks
from jaxprune.allocation.widths import Widths as Widths
from jaxprune.allocation.widths import precrop_widths as precrop_widths
