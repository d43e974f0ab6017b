"""What happens when I type `train`? Files, clocks, processes and devices live here."""
