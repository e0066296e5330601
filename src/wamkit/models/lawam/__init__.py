"""models/lawam."""
