"""What ranks do together: join, wait, gather small objects, agree on errors."""
