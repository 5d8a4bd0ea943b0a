from __future__ import annotations

import torch

from har_pipeline.models.extractors.base import Preprocess


def test_preprocessing_by_hand() -> None:
    clips = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 1, 3)
    rgb = Preprocess(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0))(clips, torch.float32)
    torch.testing.assert_close(rgb.flatten(), torch.tensor([4.5, 4.5, 27 / 8]))
    bgr = Preprocess(mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), bgr=True)(clips, torch.float32)
    assert bgr.flatten().tolist() == [29.0, 18.0, 7.0]
