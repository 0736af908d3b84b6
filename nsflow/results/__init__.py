"""What a run returns: samples, files, text, plots and pages."""

import lazy_loader

# Matplotlib is imported when something is drawn.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["plots"])
