"""From samples to figures and intervals, and how many builds those take. Pure; distributions come from scipy."""
