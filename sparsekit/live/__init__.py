"""The first front door: masks in the live graph of a TF1-style training script."""
