"""Other libraries and file formats: one file for each, which nothing else in fsmer needs."""
