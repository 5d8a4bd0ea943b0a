"""ConvLSTM: the layer, the two published networks, and how videos are arranged for them."""
