"""Encoders: frames or text to tokens. Frozen foundation models, and a small one trained on the run's own frames."""
