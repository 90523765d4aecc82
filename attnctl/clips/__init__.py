"""What techniques for clips share: frames in an attention call, lanes of motion, memory."""
