"""Training: losses, augmentation, the loop, its state, checkpoints and logs."""
