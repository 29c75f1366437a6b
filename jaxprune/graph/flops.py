"""Operations of one equation, as XLA counts them: two for each product that is summed up."""

import math
from collections.abc import Callable
from typing import Any


def dot_general(eqn: Any) -> int:
    """Return the operations of a matrix product."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)


def ragged_dot_general(eqn: Any) -> int:
    """Return the operations of a ragged product: each row meets one member of the weight."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    left = eqn.invars[0].aval.shape
    sums = math.prod(left[d] for d in contracted)
    if not numbers.rhs_group_dimensions:  # the ragged rows are summed over: no row counts twice
        members = eqn.invars[2].aval.shape[-1]
        return 2 * math.prod(eqn.outvars[0].aval.shape) // members * sums
    return 2 * math.prod(eqn.outvars[0].aval.shape) * sums


def conv_general_dilated(eqn: Any) -> int:
    """Return the operations of a convolution: taps on padding and dilation are none."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    image, kernel, result = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    taps = 1
    for i, (low, _) in enumerate(p["padding"]):
        taps *= _taps(
            image[numbers.lhs_spec[2 + i]],
            kernel[numbers.rhs_spec[2 + i]],
            result[numbers.out_spec[2 + i]],
            low,
            p["window_strides"][i],
            p["lhs_dilation"][i],
            p["rhs_dilation"][i],
        )
    outputs, inputs = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    batch = image[numbers.lhs_spec[0]] // p["batch_group_count"]
    return 2 * taps * outputs * inputs * batch


def _taps(
    image: int, kernel: int, result: int, low: int, stride: int, spread: int, dilation: int
) -> int:
    """Count the pairs of a result's and a kernel's place, along one dimension, that meet a cell."""
    extent = (image - 1) * spread + 1
    found = 0
    for tap in range(kernel):
        first = tap * dilation - low  # where the tap stands for the first result
        found += sum(
            0 <= place < extent and place % spread == 0
            for place in range(first, first + result * stride, stride)
        )
    return found


OPERATIONS: dict[str, Callable[[Any], int]] = {
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot_general,
    "conv_general_dilated": conv_general_dilated,
}
