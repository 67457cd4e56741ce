"""Models: tensors in, tensors out. Imports torch, numpy, safetensors and `feature_repo.contracts` only."""
