"""What worlds are there? Tasks by name, and the environments that run them."""
