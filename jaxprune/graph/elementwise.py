"""Primitives that work element by element, and whether they keep a zero."""

# A zero in any operand is a zero of the result.
_PRODUCTS = frozenset({"mul", "and"})
# A zero in the first operand is a zero of the result.
_FIRST = frozenset({"div", "rem", "atan2", "shift_left", "shift_right_arithmetic"})
# A zero stays zero where all other operands are zero.
_SUMS = frozenset({"add", "add_any", "sub", "max", "min", "or", "xor"})
# One operand, and f(0) = 0.
_ODD = frozenset(
    (
        *("neg", "sign", "abs", "sqrt", "cbrt", "sin", "tan", "tanh", "asin", "atan", "sinh"),
        *("asinh", "atanh", "expm1", "log1p", "floor", "ceil", "round", "square"),
        *("convert_element_type", "reduce_precision", "copy", "copy_p", "real", "imag", "conj"),
        *("erf", "erf_inv", "device_put", "sharding_constraint", "mesh_cast", "pvary", "pcast"),
        *("reshard", "stop_gradient", "optimization_barrier", "name", "population_count"),
        *("layout_constraint"),
    )
)
# The others.
_PLAIN = frozenset(
    (
        *("exp", "exp2", "log", "logistic", "cos", "cosh", "acos", "acosh", "rsqrt", "not"),
        *("lgamma", "digamma", "erfc", "clz", "is_finite", "pow", "nextafter", "eq", "ne", "lt"),
        *("le", "gt", "ge", "eq_to", "lt_to", "le_to", "complex", "shift_right_logical", "clamp"),
        *("igamma", "igammac", "polygamma", "zeta", "bessel_i0e", "bessel_i1e"),
        *("regularized_incomplete_beta", "mulhi"),
    )
)
NAMES = _PRODUCTS | _FIRST | _SUMS | _ODD | _PLAIN | {"integer_pow", "select_n"}
QUIET = frozenset({"copy", "copy_p", "device_put", "optimization_barrier", "name", "pvary"})
"""Those that are not worth a word among the steps of a weight."""


def keeps_zero(name: str, power: int, position: int, zeros: list[bool]) -> bool:
    """Tell whether a zero in one operand is a zero of the result.

    Args:
      name: the primitive.
      power: exponent of ``integer_pow``.
      position: of the operand.
      zeros: for each operand, whether it is known to be zero everywhere.
    """
    if name in _PRODUCTS or name in _ODD:
        return True
    if name in _FIRST:
        return position == 0
    if name == "integer_pow":
        return power > 0
    others = [zero for i, zero in enumerate(zeros) if i != position]
    if name == "select_n":  # the predicate decides, and is no summand
        return position > 0 and all(others[1:])
    return name in _SUMS and all(others)
