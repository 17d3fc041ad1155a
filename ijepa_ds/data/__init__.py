"""Images in: the index of a folder, the order and crops of the samples, and the loaders. Importing it does nothing."""
