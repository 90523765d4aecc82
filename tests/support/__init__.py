"""Real models at toy size, and the tools that every test needs."""
