"""Measurements: what the techniques do to pictures, and what they cost."""
