"""Edits of clips whose true motion is known."""
