"""Samples in tar shards: written, indexed, fetched and read in order."""
