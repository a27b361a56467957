"""What the models share, on torch alone: reading checkpoints. Nothing is imported here."""
