"""Other tools' names over sparsekit's API."""
