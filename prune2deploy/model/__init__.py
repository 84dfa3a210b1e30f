"""From a model's name to a module: the zoo, torchvision, timm, or a user's own factory."""
