"""The stages put together: a cascade of decoder and upsamplers, and unCLIP, which has one."""
