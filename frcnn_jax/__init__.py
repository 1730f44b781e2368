"""Fast R-CNN (Girshick 2015) as a functional JAX library.

The names in `__all__` are the public API; `__init__.pyi` lists the module of each. They are imported on first use, so
`import frcnn_jax` is fast.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
