"""Preparation steps that official instructions ask for: files made out of an archive's files."""
