"""int8 files: what is quantised, on which ranges, in which style."""
