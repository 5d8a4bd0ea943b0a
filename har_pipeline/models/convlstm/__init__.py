"""ConvLSTM: the layer, the two published networks, and their clips, windows and batches."""
