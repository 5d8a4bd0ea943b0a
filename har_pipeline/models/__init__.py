"""Networks: extractors on clips, heads on features, ConvLSTMs on raw frames; and the device they run on."""
