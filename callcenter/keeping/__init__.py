"""What is written survives: backups, bringing them back, and proof that a house is whole."""
