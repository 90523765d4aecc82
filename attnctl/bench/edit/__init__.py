"""Edits with a known answer, and how well methods do them."""
