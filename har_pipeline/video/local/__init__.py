"""Handcrafted local descriptors: of space-time interest points, and of dense trajectories."""
