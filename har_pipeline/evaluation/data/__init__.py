"""Coarse categories of published classes: class, group, and which are `complex`."""
