"""The parts of train.py. Read backward.py and optimizer.py; the others are not about GPT-2."""
