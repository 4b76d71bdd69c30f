"""What models are trained on and measured with."""
