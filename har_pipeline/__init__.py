"""har_pipeline: videos -> CNN features in a Zarr store -> temporal heads, for human action recognition."""

from har_pipeline.errors import HarError
from har_pipeline.records import ClipSpec, FeatureRecord, FeatureSpec, Scores, Split, VideoRecord

__version__ = "0.1.0"

__all__ = ["ClipSpec", "FeatureRecord", "FeatureSpec", "HarError", "Scores", "Split", "VideoRecord", "__version__"]
