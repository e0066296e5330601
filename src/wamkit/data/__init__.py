"""Recorded episodes: read and record LeRobot data sets, cut windows in physical time, mix, normalise, check."""
