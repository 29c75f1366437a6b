"""Compiling without the backend's optimisations, which takes half the time.

The program is the same up to machine code: its operations and collectives can be read, its memory
and speed not.
"""

import functools

import jax

OPTIONS = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
