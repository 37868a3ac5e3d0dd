"""The process: threads, limits, and installed libraries."""
