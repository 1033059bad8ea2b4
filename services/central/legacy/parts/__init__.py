"""The converters of each part."""
