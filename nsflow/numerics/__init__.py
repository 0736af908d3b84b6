"""What every package needs: precision, batching, random numbers, checks of arguments, names in files."""
