"""From a data spec to training and test splits."""
