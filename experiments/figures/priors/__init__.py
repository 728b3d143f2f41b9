"""What the experiments on priors share: the priors compared, what is measured of them, and how they are trained."""
