"""The rendered data set: people of boxes and ellipsoids who act, in colour, flow and depth."""
