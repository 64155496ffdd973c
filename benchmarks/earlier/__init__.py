"""Code of the product as it was, to measure what is there now against."""
