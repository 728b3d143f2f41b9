"""Shapes and types written in signatures are checked while the tests run (and only then: it breaks torch.compile)."""

import os

if not os.environ.get("UNCLIP_UNCHECKED"):
    from jaxtyping import install_import_hook

    install_import_hook(["unclip", "prior", "decoder", "upsamplers"], "beartype.beartype")
