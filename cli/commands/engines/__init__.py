"""Commands that make, check and describe engines."""
