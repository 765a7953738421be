"""What the programs share apart from model and data; nothing in here imports from a program."""
