"""Losses as pure functions, unreduced: each returns a value per element or per sample."""
