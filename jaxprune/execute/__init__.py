"""Run any function on compressed weights, with no change to its code."""

from jaxprune.execute.pack import Packed as Packed
from jaxprune.execute.pack import pack as pack
from jaxprune.execute.program import Executable as Executable
from jaxprune.execute.program import execute as execute
from jaxprune.execute.views import MatrixView as MatrixView
