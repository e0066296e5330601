"""The family of models on a video backbone: what Light-WAM and Fast-WAM share."""
