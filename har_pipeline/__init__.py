"""har_pipeline: videos -> CNN features in a Zarr store -> temporal heads, for human action recognition."""

from typing import TYPE_CHECKING, Any

from har_pipeline.core.errors import HarError
from har_pipeline.core.records import ClipSpec, FeatureRecord, FeatureSpec, Scores, Split, VideoRecord

if TYPE_CHECKING:
    from har_pipeline.training.estimator import HeadClassifier

__version__ = "0.1.0"

__all__ = [
    "ClipSpec",
    "FeatureRecord",
    "FeatureSpec",
    "HarError",
    "HeadClassifier",
    "Scores",
    "Split",
    "VideoRecord",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Return HeadClassifier, whose imports (torch, scikit-learn) would make every `import har_pipeline` slow."""
    if name == "HeadClassifier":
        from har_pipeline.training.estimator import HeadClassifier

        return HeadClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
