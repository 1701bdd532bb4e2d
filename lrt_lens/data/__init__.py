"""Text on its way to the models: documents, windows, blocks, contrast sets and choice items."""
