"""World models: tokens and an action, latent or real, to future tokens."""
