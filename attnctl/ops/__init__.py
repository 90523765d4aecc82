"""Pure tensor functions: the readable reference of everything numeric."""
