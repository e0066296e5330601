"""Blocks with no opinion: attention, modulation, positions, pooling."""
