"""Bayesian evidence and posteriors by nested sampling with flow-matching proposals."""

import lazy_loader

# JAX and its friends take seconds to import: `nsflow show` and `nsflow --help` do without them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
