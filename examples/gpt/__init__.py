"""What train_gpt.py trains, on what, and how it reports: settings, data, model, metrics."""
