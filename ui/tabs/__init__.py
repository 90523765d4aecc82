"""The tabs of the page, one module each; each has ``build(studio, visit)``."""
