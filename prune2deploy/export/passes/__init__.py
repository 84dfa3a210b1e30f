"""What is done to a graph after torch exported it: its ends, its names, what is built in before and behind."""
