"""World action models: compositions of encoders, dynamics and action decoders, a folder each and one a family."""
