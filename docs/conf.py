"""How the documentation is built: Sphinx, MyST, furo; from this checkout, without a network."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
project = _project["name"]
author = "The jaxprune authors"
copyright = author
version = release = _project["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "reference",  # docs/_ext: choice tables, the face's index, coverage
]
exclude_patterns = ["_build"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Reference"]
napoleon_use_ivar = True  # fields of a dataclass as a list, not as one entry each
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "jaxprune"
