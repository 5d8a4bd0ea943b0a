"""The 3D-ConvNet of Baccouche 2011, which a network on raw frames and an extractor share."""
