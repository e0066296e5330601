"""From a checkpoint to actions: loading, acting and imagining in physical units."""
