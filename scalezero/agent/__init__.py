"""What is the algorithm? Pure functions of pytrees: no files, clocks, processes or globals."""
