"""The PyTorch network of a bundle's own checkpoint, as a backend: the reference that others are held to. See `backend`."""
