"""Fast attention: nearness to dense pictures, speed, memory."""
