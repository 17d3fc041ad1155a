"""Images in: the index of a folder, the order and crops, and the loaders. Importing it does nothing."""
