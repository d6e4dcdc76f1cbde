"""What train.py is made of. Read backward.py and optimizer.py; the rest is not about GPT-2."""
