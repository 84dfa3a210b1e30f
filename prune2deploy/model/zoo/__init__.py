"""The CIFAR-style networks of the pruning literature, for any input size and class count."""
