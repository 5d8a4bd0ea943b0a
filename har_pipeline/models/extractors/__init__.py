"""Nets that turn clips into features, one module each or one for a family, and the function that builds an extractor."""

from har_pipeline.models.extractors.base import Extractor, Net
from har_pipeline.models.extractors.build import build_extractor
from har_pipeline.models.extractors.nets import all_nets, describe_net, describe_nets, find_net

__all__ = ["Extractor", "Net", "all_nets", "build_extractor", "describe_net", "describe_nets", "find_net"]
