"""How fast is it, and how fast could this machine do it? Imported by the command line alone."""
