"""The PyTorch reference network: configuration, weights and inference."""
