"""The demo models, texts and SAEs that ship with the package, and what loads them."""
