"""Network parts that several stages are built from."""
