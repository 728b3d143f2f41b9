"""Files of tensors: safetensors and torch's pickles, read without running or believing anything in them.

What a file holds is known at once, its numbers are read one tensor at a time, when asked for: so it can be compared with a config
before anything is built, and loading holds the weights once.
"""

from .folder import find_weights, in_file, in_folder
from .pickles import Foreign, tensors_by_name, tree
from .tensors import Lazy, header, lazily, read_tensors, reading, sha256_of, to_bytes, write_tensors

__all__ = [
    "Foreign",
    "Lazy",
    "find_weights",
    "header",
    "in_file",
    "in_folder",
    "lazily",
    "tensors_by_name",
    "read_tensors",
    "reading",
    "sha256_of",
    "to_bytes",
    "tree",
    "write_tensors",
]
