"""The emoji of Twemoji as data, the shipped model, and what was measured on them."""
