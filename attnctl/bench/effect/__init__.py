"""Which steering works: one table of all techniques."""
