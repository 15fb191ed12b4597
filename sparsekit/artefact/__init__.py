"""Reading models from files, trusting nothing, and writing them."""
