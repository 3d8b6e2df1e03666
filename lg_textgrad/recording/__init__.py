"""Where Runs come from. A trace source is one file here that returns Runs."""
