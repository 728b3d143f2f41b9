"""What a training is, from its configuration to the finished component."""
