"""Training of networks on raw frames."""
