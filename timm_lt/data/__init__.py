"""Long-tailed subsets, list files, embedded digits, images kept in memory, loaders."""
