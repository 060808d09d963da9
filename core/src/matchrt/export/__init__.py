"""From a PyTorch network to a checked bundle. The one room, with `weights` and `patches`, that imports torch."""
