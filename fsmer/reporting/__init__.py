"""Reports as pages, pictures, comparisons and statistics."""
