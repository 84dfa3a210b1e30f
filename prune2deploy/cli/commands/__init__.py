"""One file a command: options to a request, the pipeline, its outcome to standard output."""
