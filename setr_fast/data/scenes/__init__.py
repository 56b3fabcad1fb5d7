"""The built-in data set: drawn landscapes with objects."""
