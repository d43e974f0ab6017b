"""What layers are there? JAX and Equinox only; nothing about reinforcement learning."""
