"""The diffusion process, the composed model, checkpoints and training."""
