"""2:4 (n:m) structured sparsity for TensorFlow."""
