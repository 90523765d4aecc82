"""What techniques that edit share: source rows, recorded features, word edits, regions."""
