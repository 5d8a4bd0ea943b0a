"""TensorFlow's SAME padding, which nets that come from TensorFlow or Keras need."""


def same_padding(size: int, kernel: int, stride: int) -> int:
    """Return how many zeros SAME padding adds along one dimension in all; an odd one goes to the end."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)
