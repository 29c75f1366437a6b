"""Compressed weights: arrays with zeros, stored without them."""

from jaxprune.formats.bitmap import Bitmap as Bitmap
from jaxprune.formats.block import BlockSparse as BlockSparse
from jaxprune.formats.files import load_file as load_file
from jaxprune.formats.files import save_file as save_file
from jaxprune.formats.layouts import PLAIN as PLAIN
from jaxprune.formats.layouts import Layout as Layout
from jaxprune.formats.legacy import load_compressed as load_compressed
from jaxprune.formats.nm import NMSparse as NMSparse
