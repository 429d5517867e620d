"""Functions of label maps: components, distances, outlines, post-processing, volumes."""
