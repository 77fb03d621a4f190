"""Chapters: presets, results, papermill, the book."""
