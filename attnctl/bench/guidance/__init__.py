"""Perturbed guidance beside classifier-free guidance."""
