"""har_pipeline: videos -> CNN features in a Zarr store -> temporal heads, for human action recognition.

The public names are listed in `__init__.pyi`, and load what they need when they are first used: importing the package itself
loads neither torch nor numpy.
"""

import sys

if sys.platform == "win32":
    _NEEDS = "har_pipeline needs Linux or macOS, for its decode processes; on Windows use it in WSL 2"
    # While `har` or `python -m har_pipeline` starts, a line; in a program of the user's an exception that it can catch.
    if sys.argv[0] == "-m" or sys.argv[0].replace("\\", "/").rpartition("/")[2] in ("har", "har.exe", "har-script.py"):
        sys.exit(f"error: {_NEEDS}")
    raise ImportError(_NEEDS)

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
