"""What a trained model is worth: bits per base, generation, scores."""
