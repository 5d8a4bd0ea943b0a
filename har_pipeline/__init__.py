"""har_pipeline: videos -> CNN features in a Zarr store -> temporal heads, for human action recognition.

The public names are listed in `__init__.pyi`, and load what they need when they are first used: importing the package itself
loads neither torch nor numpy.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
