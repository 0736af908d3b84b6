"""Sphinx configuration: `make docs`, or `python -m sphinx docs docs/_build` with the extra `docs` installed."""

project = "nsflow"
author = "The nsflow developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # shapes are in the docstrings; jaxtyping's strings are not names that can be linked
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = True  # the adapter for blackjax, in the style of its readers
