"""Action decoders: tokens of the present and of imagined futures to action chunks."""
