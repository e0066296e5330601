"""A policy as a server that openpi's clients understand: wire format, sessions, batching, metrics."""
