"""What `python -m registry.serve` is made of: a light parent, and what runs in its workers."""
