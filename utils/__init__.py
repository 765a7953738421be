"""What the programs share, apart from the model, the data pipeline and the loops."""
